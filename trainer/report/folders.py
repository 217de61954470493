"""Which folders below those that are named hold a run."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.common.errors import UserError
from trainer.report.records import RunRecord, read_run

SIGNS = ("recipe.yaml", "journal.jsonl")  # each says that a folder is a run's
SKIPPED = {"mlartifacts", "mlruns"}  # copies of runs' files, which MLflow keeps
CACHED = re.compile(r"[0-9a-f]{32}\.safetensors")  # statistics of training images, which measuring keeps
DEEPEST = 6  # folders below the one that is named
EXPECTED = "expected a folder of runs such as outputs/, or a run in it (with its recipe.yaml)"


def read_runs(roots: list[Path]) -> tuple[list[RunRecord], list[str]]:
    """The runs below some folders, each of which may be a run itself, and lines about what is amiss.

    Raises:
        UserError: one of the folders is not there, or there is no run in any.
    """
    records: list[RunRecord] = []
    lines: list[str] = []
    folders = run_folders(roots, lines)
    for folder in folders:
        try:
            record = read_run(folder)
        except (UserError, OSError) as error:
            lines.append(f"{folder}: {error}")
            continue
        records.append(record)
        lines += [f"{folder}: {remark}" for remark in record.remarks]
    return records + _sources(records), lines


def run_folders(roots: list[Path], lines: list[str]) -> list[Path]:
    """The folders of runs below some folders; adds a line for each folder that has none or cannot be read.

    Raises:
        UserError: one of the folders is not there, or there is no run in any.
    """
    folders: list[Path] = []
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root}: {'no folder' if root.exists() else 'does not exist'}; {EXPECTED}")
        folders += _runs_below(root, lines)
    if not folders:
        raise UserError(f"{', '.join(map(str, roots))}: no run there; {EXPECTED}")
    return folders


def source_places(record: RunRecord) -> list[str]:
    """Where the run that `from` names may be: at its path, or else by its name beside this run."""
    path = Path(str(record.recipe["from"]))
    return [os.path.realpath(place) for place in (path, record.folder.parent / path.name)]


def _sources(records: list[RunRecord]) -> list[RunRecord]:
    """Runs of encoders that diffusions name and that are not among the runs: they say what those are of."""
    sources: dict[str, RunRecord] = {}
    here = {os.path.realpath(record.folder) for record in records}
    for record in records:
        if not record.recipe.get("from"):
            continue
        places = [Path(place) for place in source_places(record)]
        place = next((place for place in places if _is_run(place)), None)
        if place is None or not here.isdisjoint(map(str, places)) or str(place) in sources:
            continue
        try:
            source = read_run(place)
        except (UserError, OSError):
            continue
        if not source.recipe.get("from"):
            source.aside = True
            sources[str(place)] = source
    return list(sources.values())


def _runs_below(root: Path, lines: list[str]) -> list[Path]:
    """Folders of runs, sorted, each once; folders right below `root` that hold none get a line."""
    seen: set[str] = set()
    if _is_run(root):
        return [root]
    runs: list[Path] = []
    for folder in _folders(root, lines):
        inside = list(_walk(folder, 1, seen, lines))
        if not inside and not _is_cache(folder):
            lines.append(f"{folder}: no run there")
        runs += inside
    return runs


def _walk(folder: Path, depth: int, seen: set[str], lines: list[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:  # links may lead in a circle, or twice to one run
        return
    seen.add(real)
    if _is_run(folder):
        yield folder
        return
    for inner in _folders(folder, lines) if depth < DEEPEST else ():
        yield from _walk(inner, depth + 1, seen, lines)


def _is_run(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in SIGNS)


def _is_cache(folder: Path) -> bool:
    try:
        return any(CACHED.fullmatch(name) for name in os.listdir(folder))
    except OSError:
        return False


def _folders(folder: Path, lines: list[str]) -> list[Path]:
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        lines.append(f"{folder}: cannot be read: {error.strerror}")
        return []
    return [path for path in inside if path.name not in SKIPPED and path.name[0] != "." and path.is_dir()]
