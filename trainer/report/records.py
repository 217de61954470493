"""A run's folder as a record: whatever of its files is there. Nothing here imports torch."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipelines.common.errors import UserError
from trainer.recipe.loading import load_saved
from trainer.report import methods
from trainer.report.drawings import Evaluation, drawing_of, read_evaluations
from trainer.report.parameters import count_parameters
from trainer.report.run_files import NO_RECIPE, checkpoint_manifests, content_of, recipe_as_it_stands, world
from trainer.runs.folder import RunFolder
from trainer.tracking import journal

EVALUATED = "results/images-"  # metrics of an evaluation of another drawing, seed or checkpoint


@dataclass
class RunRecord:
    """What is known of a run.

    Attributes:
        recipe: resolved, nested as in its file.
        results: figures by name, as in results.json.
        images: seen when the figures were measured, else when the run was saved last.
        hours: of training, without evaluation and saving; None where the journal does not say.
        device: such as "2 x cpu"; '' where world.json does not say.
        dataset: its name in the journal; ''.
        parameters: of the encoder, decoder and denoiser, where there is one.
        evaluations: of a diffusion, those of other seeds, drawings and checkpoints.
        remarks: a line each: what is damaged, missing or not finished.
        aside: whether it is read for the run that names it in `from` alone, and has no row.
    """

    folder: Path
    recipe: dict[str, Any]
    results: dict[str, float] = field(default_factory=dict)
    images: int = 0
    hours: float | None = None
    device: str = ""
    dataset: str = ""
    parameters: dict[str, int] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    aside: bool = False

    @property
    def seed(self) -> int:
        return self.recipe.get("seed", 0)

    @property
    def has_figures(self) -> bool:
        return not self.aside and bool(self.results or self.evaluations)

    @property
    def is_diffusion(self) -> bool:
        return self.recipe["objective"]["kind"] == "diffusion"

    def sampled(self) -> list[Evaluation]:
        """All figures of a diffusion's samples, those of its own drawing and seed first."""
        return [Evaluation(self.images, drawing_of(self.recipe), self.seed, self.results), *self.evaluations]


def read_run(path: Path) -> RunRecord:
    """The record of a run. Raises UserError where its recipe.yaml is missing, or of no run that trains."""
    folder = RunFolder(path)
    recipe, remarks = saved_recipe(path / "recipe.yaml")
    record = RunRecord(path, recipe, remarks=remarks)
    try:
        record.results = folder.results()
    except UserError as error:
        record.remarks.append(_without_path(error, path))
    if record.is_diffusion:
        record.evaluations, damaged = read_evaluations(path)
        record.remarks += damaged
    log = _journal(record, folder)
    checkpoints = checkpoint_manifests(folder)
    record.hours, record.dataset = log.hours(), str(log.tags.get("dataset", ""))
    record.device = _device(record, folder)
    record.parameters = _parameters(record, checkpoints, log.tags)
    ended = _ended(record, folder, log, max(checkpoints, default=0))
    record.images = log.measured or ended
    if record.results and record.images != ended:
        record.remarks.append(
            f"its figures are of {record.images:,} images, and it has seen {ended:,}; {_command(record)} "
            "measures the newest"
        )
    elif not record.results and not record.remarks:
        what = "not evaluated with its own drawing and seed" if record.evaluations else "not evaluated"
        record.remarks.append(f"{what}; {_command(record)} measures it")
    return record


def _command(record: RunRecord) -> str:
    """The words that measure a run; a diffusion's need an extractor where its recipe has none."""
    if not record.is_diffusion:
        return f"recipe=evaluate from={record.folder}"
    evaluate = record.recipe.get("evaluate")
    known = isinstance(evaluate, dict) and evaluate.get("extractor")
    extractor = "" if known else " evaluate.extractor=efficientnet_lite0"
    return f"recipe=measure from={record.folder}{extractor}"


def _without_path(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}/")


# ---- the recipe ----------------------------------------------------------------------------------


def saved_recipe(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The resolved recipe of a run, with a remark where it is not of this version and is read as it stands.

    A run of another version may have keys that this one lacks; its figures are none the worse.

    Raises:
        UserError: no such file, no YAML, or no recipe of a run that trains.
    """
    if not path.exists():
        raise UserError("recipe.yaml is missing: no run of this program, or one that never began")
    try:
        loaded = load_saved(path)
        recipe, remarks = loaded.resolved(), []
    except UserError as error:
        recipe, remarks = (
            recipe_as_it_stands(path),
            [f"recipe.yaml is read as it stands: {_reason(error, path)}"],
        )
    if "objective" not in recipe:
        raise UserError(f"recipe.yaml is of the task {recipe.get('task')}, not of a run that trains")
    try:
        described = methods.name(recipe), methods.latent(recipe), methods.data_name(recipe)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        described = None
    if described is None or not _has_numbers(recipe):
        raise UserError(NO_RECIPE)
    return recipe, remarks


def _has_numbers(recipe: dict[str, Any]) -> bool:
    return all(type(recipe.get(key, 0)) is int for key in ("seed", "images"))


def _reason(error: UserError, path: Path) -> str:
    text = str(error).removeprefix(f"{path}: ")
    return text.partition(" (the run wrote it otherwise")[0]


# ---- the journal and how the run ended -----------------------------------------------------------


@dataclass
class _Log:
    """What a journal says: tags, images, the images at which results were measured, speeds by images."""

    tags: dict[str, Any] = field(default_factory=dict)
    images: int = 0
    measured: int = 0
    speeds: dict[int, float] = field(default_factory=dict)

    def hours(self) -> float | None:
        """Each stretch between two records of the speed took images / speed; None without records."""
        seconds, before = 0.0, 0
        for images, speed in sorted(self.speeds.items()):
            seconds += (images - before) / speed
            before = images
        return seconds / 3600 if self.speeds else None


def _journal(record: RunRecord, folder: RunFolder) -> _Log:
    log, entry = _Log(), None
    try:
        for entry, _ in journal.read(folder.journal):
            kind, name, value = entry["kind"], entry["name"], entry["value"]
            log.images = max(log.images, entry["images"])
            if kind == "tag":
                log.tags[name] = value
            elif kind == "metric" and name.startswith("results/") and not name.startswith(EVALUATED):
                log.measured = max(log.measured, entry["images"])
            elif kind == "metric" and name == "images_per_second" and value > 0 and math.isfinite(value):
                log.speeds[entry["images"]] = value
        if entry is None:
            record.remarks.append("journal.jsonl has no record that can be read: the hours are not known")
    except FileNotFoundError:
        pass  # a run whose figures alone were kept
    except OSError as error:
        record.remarks.append(f"journal.jsonl cannot be read: {error.strerror}")
    return log


def _ended(record: RunRecord, folder: RunFolder, log: _Log, saved: int) -> int:
    """Images seen at the end; adds a remark where the run is not finished."""
    for status in ("done", "failed", "stopped"):
        content = content_of(folder.path / status)
        if content is None:
            continue
        first, _, rest = content.partition("\n")
        if not re.fullmatch("[0-9]{1,18}", first):
            record.remarks.append(f"{status} is damaged: expected the number of images seen")
            break
        if status != "done":
            why = " ".join(rest.split())
            record.remarks.append(f"{status} at {int(first):,} images{f': {why}' if why else ''}")
        return int(first)
    else:
        total = record.recipe.get("images", 0)
        record.remarks.append(f"not finished: {log.images:,} of {total:,} images in its journal")
    return saved or log.images


def _device(record: RunRecord, folder: RunFolder) -> str:
    """Such as "2 x cpu": how many processes there were at the last start, and on what."""
    try:
        last = world(folder)
    except ValueError:
        record.remarks.append("world.json is damaged: the device is not known")
        return ""
    device, processes = last.get("device", ""), last.get("processes", 1)
    return f"{processes} x {device}" if device and processes != 1 else str(device)


# ---- parameters ----------------------------------------------------------------------------------


def _parameters(record: RunRecord, checkpoints: dict[int, Path], tags: dict[str, Any]) -> dict[str, int]:
    """Numbers that are learned, by part, from the newest manifest that can be read, else from the journal."""
    diffusion = record.is_diffusion
    for images in sorted(checkpoints, reverse=True):
        try:
            return count_parameters(json.loads(checkpoints[images].read_bytes())["tensors"], diffusion)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            name = checkpoints[images].parent.name
            record.remarks.append(f"checkpoint {name} has no manifest that can be read")
    part, tag = ("denoiser", "parameters") if diffusion else ("encoder", "encoder parameters")
    return {part: tags[tag]} if isinstance(tags.get(tag), int) else {}
