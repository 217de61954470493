"""Which checkpoints of a folder stay, and how others go: by a rename first, so that none is half there."""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from data_pipelines.common.files import flush
from data_pipelines.common.retry import to_stderr
from trainer.checkpoints.load import visible


def retained(saved: Iterable[int], keep: int, keep_every: int = 0) -> set[int]:
    """Of checkpoints at these numbers of images, those that stay.

    They are the newest `keep`, and with `keep_every` = M > 0, of each interval [kM, (k + 1)M), k >= 1, the
    first. What was the first once stays the first, so the rule asks for no memory and holds over restarts.
    """
    saved = sorted(saved)
    first: dict[int, int] = {}
    for images in saved if keep_every else ():
        first.setdefault(images // keep_every, images)
    first.pop(0, None)
    return set(saved[-keep:]) | set(first.values())


def expired(folder: Path, images: int, keep: int, keep_every: int = 0) -> list[Path]:
    """The checkpoints that do not stay, fewest images first, where that at `images` is the newest whole one.

    Later ones are not counted and not among them: they are damaged, or the run would go on from them.
    """
    saved = {number: path for number, path in visible(folder) if number <= images}
    stay = retained(saved, keep, keep_every)
    return [path for number, path in saved.items() if number not in stay]


def remove(path: Path) -> None:
    """Removes a checkpoint: at once for whoever looks, its files after that. Raises OSError."""
    hidden = path.with_name(f".{path.name}.removing")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(path, hidden)
    flush(path.parent)
    shutil.rmtree(hidden, ignore_errors=True)  # what resists is left to the next start


def prune(folder: Path, images: int, keep: int, keep_every: int = 0) -> None:
    """Removes what is `expired`; one that resists stays for the next save to try, and is told on stderr."""
    for path in expired(folder, images, keep, keep_every):
        try:
            remove(path)
        except OSError as error:
            to_stderr(f"cannot remove the older checkpoint {path} ({error.strerror}); training goes on")


def leftovers(folder: Path) -> list[Path]:
    """What saves and removals of dead processes left behind; of a run that is saving, that save too."""
    hidden = sorted(Path(folder).glob(".images-*"))
    return [path for path in hidden if path.suffix in (".partial", ".removing")]


def clean(folder: Path, warn: Callable[[str], None] = to_stderr) -> None:
    """Removes the leftovers. Rank 0, before any rank saves.

    One that resists (a file of it is in use, or on NFS still open somewhere) is told by `warn`: nobody reads
    it, so it keeps no run from starting.
    """
    for path in leftovers(folder):
        try:
            if path.is_symlink():  # of a checkpoint that was linked here: what it points to is not ours
                path.unlink()
            else:
                shutil.rmtree(path)
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)  # what does not resist shall not take room
            if os.path.lexists(path):
                warn(f"cannot remove {path} ({error.strerror}), which a save or a removal has left")
