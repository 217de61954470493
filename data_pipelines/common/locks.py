"""Locks on files, which end with the process that holds them."""

import errno
import fcntl
import os
import sys
import time
from pathlib import Path
from typing import IO

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)

_locked: set[int] = set()  # descriptors of `open_locked`
_warned_of_no_locks = False


class NoLocks(OSError):
    """The file system has no locks, as some Lustre mounts."""


def _forget_locks_in_child() -> None:
    # flock belongs to the open file, which a forked child shares: a loader's worker that outlives a killed
    # trainer would keep the run locked. Closing the child's copy leaves the parent's lock as it is.
    for fd in _locked:
        os.close(fd)
    _locked.clear()


os.register_at_fork(after_in_child=_forget_locks_in_child)


def lock(file: IO | int, wait: bool = False, shared: bool = False) -> bool:
    """Locks an open file; it stays locked until it is closed, also by the end of the process.

    Args:
        wait: until whoever else holds the lock lets go of it.
        shared: with others that share it, in place of alone.

    Returns:
        False where another holds the lock.

    Raises:
        NoLocks: the file system has none.
        OSError: it refuses.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise NoLocks(error.errno, error.strerror) from None
        raise
    return True


def open_locked(path: Path, wait: float = 0.0, shared: bool = False) -> int | None:
    """Opens `path` for reading and appending under a lock that ends with the process, exclusive or `shared`.

    The file is made where there is none. Returns the descriptor (for `close_locked`), or None where another
    holds the lock for longer than `wait` seconds. Raises OSError. A file system without locks counts as
    unlocked, with a warning on stderr, once a process.
    """
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    deadline = time.monotonic() + wait
    try:
        while not lock(fd, shared=shared):
            if time.monotonic() >= deadline:
                os.close(fd)
                return None
            time.sleep(0.05)
    except NoLocks as error:
        _warn_of_no_locks(path, error)
    except OSError:
        os.close(fd)
        raise
    _locked.add(fd)
    return fd


def is_locked_elsewhere(path: Path) -> bool:
    """Whether another process has a file locked; False where there is no file, or no locks.

    Asks by a shared lock, for a moment: two that ask at once do not see each other. Raises OSError.
    """
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return False


def _warn_of_no_locks(path: Path, error: OSError) -> None:
    global _warned_of_no_locks
    if not _warned_of_no_locks:
        _warned_of_no_locks = True
        print(
            f"warning: {path}: this file system has no locks ({error.strerror}), so nothing keeps "
            "two processes from writing the same run; start it once only",
            file=sys.stderr,
            flush=True,
        )


def is_locked(fd: int) -> bool:
    """Whether a descriptor of `open_locked` is open in this process: a forked child has none."""
    return fd in _locked


def close_locked(fd: int) -> None:
    """Closes a descriptor of `open_locked`; the lock goes with it."""
    if fd in _locked:
        _locked.discard(fd)
        os.close(fd)
