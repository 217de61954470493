"""How a diffusion's samples were drawn: by its recipe, and by the names of folders in evaluations/."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.common.errors import UserError
from trainer.recipe.drawing import Drawing
from trainer.runs.folder import RunFolder

FOLDER = re.compile(r"images-([0-9]{12,})-(.+)")  # an evaluation without a drawing is of an encoder
SEED = re.compile(r"(?:^|-)seed-([0-9]+)(?=-|$)")
DRAWING = re.compile(r"([a-z0-9_]+)-([a-z0-9_]+)-([0-9]+)(?:-(.+))?")
SETTING = re.compile(r"([a-z_]+)-([0-9.]+(?:e[-+]?[0-9]+)?)(?:-|$)")
UNSAID = {"eta": 0.0, "guidance": 1.0}  # values that names leave out


@dataclass(frozen=True)
class Evaluation:
    """Figures of samples of a checkpoint.

    Attributes:
        images: seen at the checkpoint.
        drawing: such as `flow heun, 25 steps, guidance 2`; '' where a recipe does not say it.
        seed: of the noise; None where the name of the folder does not say it.
        results: figures by name, as in results.json.
    """

    images: int
    drawing: str
    seed: int | None
    results: dict[str, float]


def drawing_of(recipe: dict[str, Any]) -> str:
    """How a diffusion's own recipe draws; '' for one that does not say it in this version's words."""
    process, draw = recipe["objective"].get("process"), recipe.get("draw") or {}
    try:
        options = Drawing(sampler=draw.get("sampler"), steps=draw.get("steps"))
        return _said(
            f"{process} {options.sampler_of(process)}, {options.steps_of(process):,} steps",
            [(name, float(draw.get(name, value))) for name, value in UNSAID.items()],
        )
    except (ValueError, TypeError, LookupError, AttributeError):
        return ""


def parse_drawing(name: str) -> tuple[str, int | None]:
    """`flow-heun-25-guidance-2-seed-1` -> `flow heun, 25 steps, guidance 2` and 1.

    Words of other versions stand as they are.
    """
    seed = SEED.search(name)
    rest = f"{name[: seed.start()]}{name[seed.end() :]}" if seed else name
    number = int(seed[1]) if seed else None
    match = DRAWING.fullmatch(rest)
    if not match:
        return rest, number
    process, sampler, steps, settings = match.groups(default="")
    first = f"{process} {sampler}, {int(steps):,} steps"
    if SETTING.sub("", settings):
        return f"{first}, {settings}", number
    try:
        return _said(first, [(word, float(value)) for word, value in SETTING.findall(settings)]), number
    except ValueError:  # such as 1.2.3
        return f"{first}, {settings}", number


def _said(first: str, settings: list[tuple[str, float]]) -> str:
    said = [f"{name} {value:g}" for name, value in sorted(settings) if UNSAID.get(name) != value]
    return ", ".join([first, *said])


def read_evaluations(run: Path) -> tuple[list[Evaluation], list[str]]:
    """The evaluations of a diffusion's run in the order of their names, and a line for each damaged file."""
    evaluations: list[Evaluation] = []
    remarks: list[str] = []
    try:
        names = sorted(os.listdir(run / "evaluations"))
    except OSError:
        return [], []
    for name in names:
        if match := FOLDER.fullmatch(name):
            try:
                results = RunFolder(run / "evaluations" / name).results()
            except (UserError, OSError) as error:
                remarks.append(str(error).removeprefix(f"{run}/"))
                continue
            if results:
                evaluations.append(Evaluation(int(match[1]), *parse_drawing(match[2]), results))
    return evaluations, remarks
