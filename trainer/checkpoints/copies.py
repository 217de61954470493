"""A checkpoint that outlives the pruning of its run: a second name for its files in another folder."""

import os
import shutil
from pathlib import Path

from data_pipelines.common.files import flush
from trainer.checkpoints.format import Damaged, verify
from trainer.checkpoints.load import Checkpoint
from trainer.checkpoints.retention import clean


def is_copied(checkpoint: Checkpoint, folder: Path) -> bool:
    """Whether the checkpoint, or all of a copy of it, lies in a folder. Digests of its parts are not read."""
    try:
        return verify(folder / checkpoint.path.name, digests=False)["digest"] == checkpoint.manifest["digest"]
    except Damaged:
        return False


def copy(checkpoint: Checkpoint, folder: Path) -> None:
    """Puts a checkpoint into another folder, whole or not at all; one of as many images goes.

    Files are hard links, which take no room while the run keeps the checkpoint too, and copies where the file
    system has none. One process a folder at a time.

    Raises:
        OSError: the folder cannot be written, or has no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clean(folder)
    target = folder / checkpoint.path.name
    begun = folder / f".{checkpoint.path.name}.partial"
    try:
        begun.mkdir()
        for path in sorted(checkpoint.path.iterdir()):
            _link(path, begun / path.name)
        flush(begun)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(begun, target)
    finally:
        shutil.rmtree(begun, ignore_errors=True)
    flush(folder)


def _link(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except OSError:  # another file system, one without links, or a file of somebody else
        shutil.copyfile(path, to)
        flush(to)
