"""Which checkpoints of a folder are retained, and the removal of others, hidden by a rename first."""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from data_pipelines.common.files import flush
from data_pipelines.common.retry import to_stderr
from trainer.checkpoints.load import visible


def retained(saved: Iterable[int], keep: int, keep_every: int = 0) -> set[int]:
    """Of checkpoints at these numbers of images, those that are retained.

    They are the newest `keep`, and with `keep_every` = M > 0, of each interval [kM, (k + 1)M), k >= 1, the
    first. The first of an interval remains its first, so the rule needs no memory and holds over restarts.
    """
    saved = sorted(saved)
    first: dict[int, int] = {}
    for images in saved if keep_every else ():
        first.setdefault(images // keep_every, images)
    first.pop(0, None)
    return set(saved[-keep:]) | set(first.values())


def expired(folder: Path, images: int, keep: int, keep_every: int = 0) -> list[Path]:
    """The checkpoints that are not retained, fewest images first; that at `images` is the newest whole one.

    Later ones are neither counted nor returned: they are damaged, or else the run would go on from them.
    """
    saved = {number: path for number, path in visible(folder) if number <= images}
    remaining = retained(saved, keep, keep_every)
    return [path for number, path in saved.items() if number not in remaining]


def remove(path: Path) -> None:
    """Removes a checkpoint: hides it by a rename, then removes its files. Raises OSError."""
    hidden = path.with_name(f".{path.name}.removing")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(path, hidden)
    flush(path.parent)
    shutil.rmtree(hidden, ignore_errors=True)  # what cannot be removed is left to the next start


def prune(folder: Path, images: int, keep: int, keep_every: int = 0) -> None:
    """Removes what is `expired`; for one that cannot be removed there is a warning on stderr.

    The next save tries again.
    """
    for path in expired(folder, images, keep, keep_every):
        try:
            remove(path)
        except OSError as error:
            to_stderr(f"cannot remove the older checkpoint {path} ({error.strerror}); training goes on")


def leftovers(folder: Path) -> list[Path]:
    """Hidden folders of unfinished saves and removals: by dead processes, or a save in progress."""
    hidden = sorted(Path(folder).glob(".images-*"))
    return [path for path in hidden if path.suffix in (".partial", ".removing")]


def clean(folder: Path, warn: Callable[[str], None] = to_stderr) -> None:
    """Removes the leftovers. Rank 0, before any rank saves.

    `warn` is called about one that cannot be removed (a file of it is in use, or on NFS open elsewhere).
    Nothing reads it: the run may start.
    """
    for path in leftovers(folder):
        try:
            if path.is_symlink():  # to a checkpoint elsewhere, which is not ours
                path.unlink()
            else:
                shutil.rmtree(path)
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)  # frees as much space as possible
            if os.path.lexists(path):
                warn(f"cannot remove {path} ({error.strerror}), which a save or a removal has left")
