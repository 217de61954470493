"""Checkpoints at rest: which are there, whether they are whole, and the removal of older ones."""

import os
import sys
import time
from argparse import Namespace
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.common.errors import UserError
from data_pipelines.common.locks import close_locked, open_locked
from trainer.checkpoints.format import MANIFEST, Damaged, verify
from trainer.checkpoints.load import NAME, newest, visible
from trainer.checkpoints.retention import clean, expired, leftovers, remove
from trainer.recipe import loading

NEXT = "; the next start continues from it, if verify finds it whole"


@dataclass(frozen=True)
class Selection:
    """The checkpoints that the command line names, (images, path), fewest images first, and their folder."""

    folder: Path
    checkpoints: list[tuple[int, Path]]
    single: bool = False  # the command line names one checkpoint, not its folder


def select(directory: Path, expected: str) -> list[Selection]:
    """The checkpoints of a folder, a selection for each run. Raises UserError where it is not `expected`."""
    if not directory.name or directory.name == "..":
        directory = directory.resolve()
    if (match := NAME.fullmatch(directory.name)) and directory.is_dir():
        return [Selection(directory.parent, [(int(match[1]), directory)], single=True)]
    if (directory / "checkpoints").is_dir() or (directory / "journal.jsonl").is_file():
        directory = directory / "checkpoints"
    elif directory.name != "checkpoints" and not visible(directory):
        runs = sorted(directory.iterdir()) if directory.is_dir() else []
        if runs := [run / "checkpoints" for run in runs if (run / "checkpoints").exists()]:
            return [Selection(folder, visible(folder)) for folder in runs]
        raise UserError(f"{directory}: no checkpoints there; expected {expected}")
    if not directory.is_dir() and not directory.parent.is_dir():
        raise UserError(f"{directory}: does not exist; expected {expected}")
    return [Selection(directory, visible(directory))]


# ---- list ----------------------------------------------------------------------------------------


def list_checkpoints(selection: Selection) -> int:
    """Prints a line for each checkpoint, from its manifest and its files' sizes alone; returns 0."""
    manifests = {path: inspect(path, digests=False) for _, path in selection.checkpoints}
    count = len(manifests)
    total = f"{count} checkpoint{'s' * (count != 1)}, {megabytes(sum(map(size, manifests)))}"
    print(f"{selection.folder}: {total if manifests else 'none yet'}")
    following = next_start(selection)
    for path, (manifest, damage) in manifests.items():
        ranks = f"{manifest.get('world', '?')} rank{'s' * (manifest.get('world') != 1)}"
        columns = (
            f"{megabytes(size(path)):>10}  {saved_at(path)}  {ranks:>8}  {manifest.get('engine', ''):14}"
        )
        status = f"damaged: {damage}" if damage else "complete, not read" + NEXT * (path == following)
        print(f"  {path.name}  {columns}  {status}")
    for path in [] if selection.single else leftovers(selection.folder):
        print(f"  {path.name}  {megabytes(size(path))}: being saved or removed now, or left by a killed run")
    return 0


def inspect(path: Path, digests: bool) -> tuple[dict, str]:
    """A checkpoint's manifest and "", or {} and the damage."""
    try:
        return verify(path, digests), ""
    except Damaged as damage:
        return {}, str(damage)


def next_start(selection: Selection) -> Path | None:
    """The checkpoint that the next start of this run continues from, if its digests hold."""
    newest_first = reversed(visible(selection.folder))
    return next((path for _, path in newest_first if not inspect(path, digests=False)[1]), None)


def saved_at(path: Path) -> str:
    """When a checkpoint was saved, local time."""
    for written in (path / MANIFEST, path):
        with suppress(FileNotFoundError):
            return time.strftime("%Y-%m-%d %H:%M", time.localtime(written.stat().st_mtime))
    return "removed meanwhile"


def size(path: Path) -> int:
    """Bytes of all files in a folder; without those that a run removes meanwhile."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def megabytes(count: int) -> str:
    """A number of bytes in units of 10^6."""
    return f"{count / 1e6:,.1f} MB"


# ---- verify --------------------------------------------------------------------------------------


def verify_checkpoints(selection: Selection) -> int:
    """Reads every byte and prints a line for each checkpoint; returns 1 where one is damaged."""
    damaged = 0
    for _, path in selection.checkpoints:
        _, damage = inspect(path, digests=True)
        if damage and not path.exists():
            print(f"{path}: removed meanwhile by its run")
            continue
        damaged += bool(damage)
        print(
            f"{path}: damaged: {damage}" if damage else f"{path}: whole, {megabytes(size(path))}", flush=True
        )
    if not selection.checkpoints:
        print(f"{selection.folder}: no checkpoint yet")
    return min(damaged, 1)


# ---- prune ---------------------------------------------------------------------------------------


def prune(selection: Selection, keep: int | None, keep_every: int | None, dry_run: bool) -> int:
    """Removes what training would not have kept, and leftovers; returns 1 where no checkpoint is whole.

    Raises UserError where the run is being written, how many to keep is not known, or removing fails.
    """
    if selection.single:
        raise UserError(
            f"{selection.checkpoints[0][1]}: is one checkpoint; prune takes the folder of its run"
        )
    keep, keep_every = retention_rule(selection.folder, keep, keep_every)
    journal, lock = selection.folder.parent / "journal.jsonl", None
    try:
        if journal.exists():  # where there is none, no run is being written
            lock = open_locked(journal)
            if lock is None:
                raise UserError(f"{selection.folder.parent}: a run is writing there; prune when it has ended")
        return _prune(selection.folder, keep, keep_every, dry_run)
    except OSError as error:
        raise UserError(
            f"{error.filename or selection.folder}: cannot be changed: {error.strerror}"
        ) from error
    finally:
        if lock is not None:
            close_locked(lock)


def retention_rule(folder: Path, keep: int | None, keep_every: int | None) -> tuple[int, int]:
    """Both options; None is replaced by the value in the run's recipe. Raises UserError without a recipe."""
    recipe = folder.parent / "recipe.yaml"
    if recipe.exists() and None in (keep, keep_every):
        save = loading.saved_training(recipe).save
        keep = save.keep if keep is None else keep
        keep_every = save.keep_every if keep_every is None else keep_every
    if keep is None:
        raise UserError(f"{folder} has no recipe.yaml with save.keep beside it; pass --keep N")
    return keep, keep_every or 0


def _prune(folder: Path, keep: int, keep_every: int, dry_run: bool) -> int:
    checkpoint = newest(folder, lambda line: print(f"warning: {line}", file=sys.stderr))
    if checkpoint is None and visible(folder):
        print(f"error: {folder}: no checkpoint is whole; nothing was removed", file=sys.stderr)
        return 1
    superfluous = expired(folder, checkpoint.images, keep, keep_every) if checkpoint else []
    rest = [(path, size(path)) for path in leftovers(folder)]
    done, freed = "would be removed" if dry_run else "removed", 0
    for path in superfluous:
        freed += (count := size(path))
        if not dry_run:
            remove(path)
        print(f"{path}: {done}, {megabytes(count)}", flush=True)
    if not dry_run:
        clean(folder, raise_user_error)
    for path, count in rest:
        freed += count
        print(f"{path}: a leftover, {done}, {megabytes(count)}")
    remaining = len(visible(folder)) - len(superfluous) * dry_run
    print(f"{folder}: {remaining} kept, {megabytes(freed)} {'would be ' * dry_run}freed")
    return 0


def raise_user_error(line: str) -> None:
    """A leftover that cannot be removed is a warning at a run's start, but an error where the user prunes."""
    raise UserError(line)


# ---- the command ---------------------------------------------------------------------------------


def run(options: Namespace, expected: str) -> int:
    """The command on every run in `options.folder`; the highest status.

    Raises:
        UserError: the folder is not as `expected` says in words.
    """
    status = 0
    for selection in select(options.folder, expected):
        status = max(status, run_on(selection, options))
    return status


def run_on(selection: Selection, options: Namespace) -> int:
    """The command on one run's checkpoints; returns its status."""
    if options.command == "list":
        return list_checkpoints(selection)
    if options.command == "verify":
        return verify_checkpoints(selection)
    try:
        return prune(selection, options.keep, options.keep_every, options.dry_run)
    except UserError as error:  # the other runs are still pruned
        print(f"error: {error}", file=sys.stderr)
        return 2
