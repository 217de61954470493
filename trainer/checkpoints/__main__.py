"""The command that looks at checkpoints: python -m trainer.checkpoints.save list|verify|prune DIR"""

import argparse
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.common.errors import UserError
from data_pipelines.common.locks import close_locked, open_locked
from trainer.checkpoints.format import MANIFEST, Damaged, verify
from trainer.checkpoints.load import NAME, newest, visible
from trainer.checkpoints.retention import clean, expired, leftovers, remove
from trainer.recipe import loading

PROGRAM = "python -m trainer.checkpoints.save"
DIR = "a run's folder, its checkpoints/ folder, a folder of runs such as outputs/, or one checkpoint images-N"
NEXT = "; the next start continues from it, if verify finds it whole"


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder of checkpoints and those of them that are meant, (images, path), fewest images first."""

    folder: Path
    checkpoints: list[tuple[int, Path]]
    alone: bool = False  # one checkpoint was named, not its folder


def places(directory: Path) -> list[CheckpointFolder]:
    """What is meant by DIR. Raises UserError where there is nothing of the kind."""
    if not directory.name or directory.name == "..":
        directory = directory.resolve()
    if (match := NAME.fullmatch(directory.name)) and directory.is_dir():
        return [CheckpointFolder(directory.parent, [(int(match[1]), directory)], alone=True)]
    if (directory / "checkpoints").is_dir() or (directory / "journal.jsonl").is_file():
        directory = directory / "checkpoints"
    elif directory.name != "checkpoints" and not visible(directory):
        if runs := sorted(directory.glob("*/checkpoints")):
            return [CheckpointFolder(folder, visible(folder)) for folder in runs]
        raise UserError(f"{directory}: no checkpoints there; expected {DIR}")
    if not directory.is_dir() and not directory.parent.is_dir():
        raise UserError(f"{directory}: does not exist; expected {DIR}")
    return [CheckpointFolder(directory, visible(directory))]


# ---- list ----------------------------------------------------------------------------------------


def show(place: CheckpointFolder) -> int:
    """A line for each checkpoint, from its manifest and its files' sizes alone."""
    states = {path: state(path, digests=False) for _, path in place.checkpoints}
    total = f"{len(states)} checkpoint{'s' * (len(states) != 1)}, {megabytes(sum(map(size, states)))}"
    print(f"{place.folder}: {total if states else 'none yet'}")
    following = next_start(place, digests=False)
    for path, (manifest, why) in states.items():
        ranks = f"{manifest.get('world', '?')} rank{'s' * (manifest.get('world') != 1)}"
        facts = f"{megabytes(size(path)):>10}  {saved_at(path)}  {ranks:>8}  {manifest.get('engine', ''):14}"
        told = f"damaged: {why}" if why else "complete, not read" + NEXT * (path == following)
        print(f"  {path.name}  {facts}  {told}")
    for path in [] if place.alone else leftovers(place.folder):
        print(f"  {path.name}  {megabytes(size(path))}: being saved or removed now, or left by a killed run")
    return 0


def state(path: Path, digests: bool) -> tuple[dict, str]:
    """A checkpoint's manifest, or {} and what is damaged in it."""
    try:
        return verify(path, digests), ""
    except Damaged as why:
        return {}, str(why)


def next_start(place: CheckpointFolder, digests: bool) -> Path | None:
    """The checkpoint that a start of this run would continue from, as far as this check can tell."""
    there = reversed(visible(place.folder))
    return next((path for _, path in there if not state(path, digests)[1]), None)


def saved_at(path: Path) -> str:
    """When a checkpoint was saved, local time."""
    for written in (path / MANIFEST, path):
        with suppress(FileNotFoundError):
            return time.strftime("%Y-%m-%d %H:%M", time.localtime(written.stat().st_mtime))
    return "removed meanwhile"


def size(path: Path) -> int:
    """Bytes of all files in a folder; what a run removes meanwhile is not counted."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def megabytes(count: int) -> str:
    """Bytes for people, in units of 10^6."""
    return f"{count / 1e6:,.1f} MB"


# ---- verify --------------------------------------------------------------------------------------


def check(place: CheckpointFolder) -> int:
    """Reads every byte, a line for each checkpoint; 1 where one is damaged."""
    damaged = 0
    for _, path in place.checkpoints:
        _, why = state(path, digests=True)
        if why and not path.exists():
            print(f"{path}: removed meanwhile by its run")
            continue
        damaged += bool(why)
        print(f"{path}: damaged: {why}" if why else f"{path}: whole, {megabytes(size(path))}", flush=True)
    if not place.checkpoints:
        print(f"{place.folder}: no checkpoint yet")
    return min(damaged, 1)


# ---- prune ---------------------------------------------------------------------------------------


def prune(place: CheckpointFolder, keep: int | None, keep_every: int | None, dry_run: bool) -> int:
    """Removes what training would not have kept, and leftovers; 1 where no checkpoint is whole.

    Raises UserError where the run is being written, how many to keep is not known, or files resist.
    """
    if place.alone:
        raise UserError(f"{place.checkpoints[0][1]}: is one checkpoint; prune takes the folder of its run")
    keep, keep_every = rule(place, keep, keep_every)
    journal, lock = place.folder.parent / "journal.jsonl", None
    try:
        if journal.exists():  # where there is none, no run is being written
            lock = open_locked(journal)
            if lock is None:
                raise UserError(f"{place.folder.parent}: a run is writing there; prune when it has ended")
        return _prune(place.folder, keep, keep_every, dry_run)
    except OSError as error:
        raise UserError(f"{error.filename or place.folder}: cannot be changed: {error.strerror}") from error
    finally:
        if lock is not None:
            close_locked(lock)


def rule(place: CheckpointFolder, keep: int | None, keep_every: int | None) -> tuple[int, int]:
    """What is not given is what the run's recipe says."""
    recipe = place.folder.parent / "recipe.yaml"
    if recipe.exists() and None in (keep, keep_every):
        save = loading.load_saved(recipe).recipe.save
        keep = save.keep if keep is None else keep
        keep_every = save.keep_every if keep_every is None else keep_every
    if keep is None:
        raise UserError(f"{place.folder}: no recipe.yaml beside it says how many stay; say --keep N")
    return keep, keep_every or 0


def _prune(folder: Path, keep: int, keep_every: int, dry_run: bool) -> int:
    found = newest(folder, lambda line: print(f"warning: {line}", file=sys.stderr))
    if found is None and visible(folder):
        print(f"error: {folder}: no checkpoint is whole; nothing was removed", file=sys.stderr)
        return 1
    going = expired(folder, found.images, keep, keep_every) if found else []
    left = [(path, size(path)) for path in leftovers(folder)]
    done, freed = "would be removed" if dry_run else "removed", 0
    for path in going:
        freed += (count := size(path))
        if not dry_run:
            remove(path)
        print(f"{path}: {done}, {megabytes(count)}", flush=True)
    if not dry_run:
        clean(folder, refuse)
    for path, count in left:
        freed += count
        print(f"{path}: a leftover, {done}, {megabytes(count)}")
    stay = len(visible(folder)) - len(going) * dry_run
    print(f"{folder}: {stay} kept, {megabytes(freed)} {'would be ' * dry_run}freed")
    return 0


def refuse(line: str) -> None:
    """What is a warning where a run starts is an error where the user asked for room."""
    raise UserError(line)


# ---- the command line ----------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line."""

    def error(self, message: str):
        raise UserError(f"{message}; see {PROGRAM} --help")


def number(least: int):
    """The type of an option that is a whole number of at least `least`."""

    def read(text: str) -> int:
        try:
            value = int(float(text)) if float(text).is_integer() else -1  # 1e6 images, as in recipes
        except (ValueError, OverflowError):
            value = -1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got '{text}'")
        return value

    return read


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line. Raises UserError."""
    parser = Parser(prog=PROGRAM, description="Checkpoints at rest: what is there, is it whole, make room.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|verify|prune")
    helps = {
        "list": "what is there: size, time, ranks, and which one the next start continues from",
        "verify": "read every byte; status 1 where a checkpoint is damaged",
        "prune": "remove older ones as training does, never the newest whole one",
    }
    for name, told in helps.items():
        command = commands.add_parser(name, help=told, description=told[0].upper() + told[1:] + ".")
        command.add_argument("folder", metavar="DIR", type=Path, help=DIR)
    command.add_argument(
        "--keep", type=number(1), metavar="N", help="the newest N stay (default: the recipe's save.keep)"
    )
    command.add_argument(
        "--keep-every",
        type=number(0),
        metavar="M",
        help="of each M images the first stays (default: the recipe's save.keep_every)",
    )
    command.add_argument("--dry-run", action="store_true", help="only tell what would be removed")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command: 0, 1 where a checkpoint is damaged, 2 for a user's mistake."""
    status = 0
    try:
        options = parse(arguments)
        for place in places(options.folder):
            if options.command == "prune":
                try:
                    found = prune(place, options.keep, options.keep_every, options.dry_run)
                except UserError as error:  # of one run of several
                    print(f"error: {error}", file=sys.stderr)
                    found = 2
            else:
                found = (show if options.command == "list" else check)(place)
            status = max(status, found)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
