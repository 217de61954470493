"""Who makes a data set: one process alone, or several that make a part each, and the last of them ends it."""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipelines.common.locks import close_locked, open_locked
from data_pipelines.shards.write import UNFINISHED

LOCK = ".lock"


@contextmanager
def alone(to: Path) -> Iterator[None]:
    """Locks the folder: of several processes one makes the data set, and the others find it finished.

    The folder is made; where nothing came into it, it is removed.
    """
    new = _missing(to)
    descriptor = _wait_for_lock(to)  # the system unlocks it, whatever ends this process
    try:
        _remove_temporary(to)  # of a killed process
        yield
    finally:
        _tidy(to, new)
        close_locked(descriptor)


@contextmanager
def beside_others(to: Path) -> Iterator[None]:
    """Locks the folder against whoever wants it alone; processes that make parts of it share it.

    The folder is made; where nothing came into it, the last of them removes it.
    """
    new = _missing(to)
    descriptor = _wait_for_lock(to, shared=True)
    try:
        yield
    finally:
        close_locked(descriptor)
        with suppress(OSError), _alone_at_once(to) as last:
            if last:
                _tidy(to, new)


@contextmanager
def last_of_all(to: Path) -> Iterator[bool]:
    """Locks the folder, unless another process is at it: yields whether it is locked."""
    with _alone_at_once(to) as last:
        if last:
            _remove_temporary(to)
        yield last


@contextmanager
def _alone_at_once(to: Path) -> Iterator[bool]:
    descriptor = _lock(to)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            close_locked(descriptor)


def _missing(to: Path) -> list[Path]:
    return [folder for folder in (to, *to.parents) if not folder.exists()]


def _wait_for_lock(to: Path, shared: bool = False) -> int:
    """The descriptor of the folder's lock, once this process has it."""
    descriptor = _lock(to, shared=shared)
    if descriptor is None:
        print(f"waiting for another process that is making {to}", file=sys.stderr, flush=True)
        descriptor = _lock(to, math.inf, shared)
    assert descriptor is not None  # it was waited for
    return descriptor


def _lock(to: Path, wait: float = 0.0, shared: bool = False) -> int | None:
    """The descriptor of the folder's lock; None where another has it for longer than `wait` seconds."""
    while True:
        to.mkdir(parents=True, exist_ok=True)
        descriptor = open_locked(to / LOCK, wait, shared)
        if descriptor is None:
            return None
        with suppress(FileNotFoundError):  # its former owner had nothing to write, and removed it
            if os.path.samestat(os.fstat(descriptor), os.stat(to / LOCK)):
                return descriptor
        close_locked(descriptor)


def _tidy(to: Path, new: list[Path]) -> None:
    """Removes what nobody writes any more, and folders that are empty; of those above, the `new` ones."""
    _remove_temporary(to)
    with suppress(OSError):  # not empty: something was written
        (to / UNFINISHED).rmdir()
    with suppress(OSError):
        if os.listdir(to) == [LOCK]:
            (to / LOCK).unlink()
        for folder in new:
            folder.rmdir()


def _remove_temporary(to: Path) -> None:
    for part in to.glob(f"{UNFINISHED}/*.part"):
        part.unlink(missing_ok=True)
