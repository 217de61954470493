"""The folder that a run is written to: the same on every node, writable, with locks that reach the others."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipelines.common.locks import NoLocks, lock
from trainer.tasks.node_check.network import Greeting

PATIENCE = (
    3.0  # seconds for a file of the first node to be seen: network file systems remember what was not there
)


def nearest(folder: Path) -> Path:
    """The folder, or the first above it that is there: where it will be made. Absolute."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))


def probe_of(folder: Path, token: str) -> Path:
    """The file of the first node, by this start's token."""
    return folder / f".node-check-{token}"


@contextmanager
def probe(folder: Path, token: str) -> Iterator[bool]:
    """Keeps a locked file in the folder; False where it cannot be written. Removed in the end."""
    path = probe_of(folder, token)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield False
        return
    try:
        with suppress(OSError):  # the other nodes see it
            lock(fd)
        with suppress(OSError):
            os.write(fd, token.encode())
        yield True
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(fd)


def try_out(folder: Path, token: str, node: str, first: str, greeting: Greeting | None) -> tuple[str, str]:
    """Writes a file there, and looks for that of the first node: (fault, locks), as in a NodeReport.

    greeting: of the first node; None where it was not reached, or there is no other node.
    """
    path = folder / f".node-check-{token}-{node}"
    try:
        with open(path, "wb") as file:
            file.write(b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"{folder} cannot be written: {error.strerror}", ""
    finally:
        with suppress(OSError):
            path.unlink()
    if greeting is None or not greeting.probe or node == first:
        return "", ""
    theirs, end = probe_of(folder, token), time.monotonic() + PATIENCE
    while not os.path.exists(theirs):
        if time.monotonic() > end:
            return f"{folder} is not that of {first}: a file which {first} wrote there is not seen", ""
        time.sleep(0.1)
        with suppress(OSError):
            os.listdir(folder)
    return "", locks_of(theirs)


def locks_of(path: Path) -> str:
    """Whether the lock of another node on a file is seen here: "shared", "local", "none"; "" not known."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return "local" if lock(fd) else "shared"
    except NoLocks:
        return "none"
    except OSError:
        return ""
    finally:
        os.close(fd)
