"""What the system refuses about a path, as one line: folders that are closed, names too long, full disks.

A missing file is not among these: whoever opens one knows what it is and how it is made, and says so. Where
nobody has said it, the mistake is the program's, and keeps its traceback.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from data_pipelines.common.errors import UserError

AGAIN = "look at the disk, or at the server of a network file system, and give the same command again"
ROOM = "make room, and give the same command again"
ADVICE = {
    errno.EACCES: "give yourself the right to it and to the folders above it, or choose another path",
    errno.EPERM: "give yourself the right to it and to the folders above it, or choose another path",
    errno.ENAMETOOLONG: "a name has at most 255 bytes, a path 4,095; choose a shorter one",
    errno.ELOOP: "its symbolic links lead in a circle; mend them, or choose another path",
    errno.ENOTDIR: "a part of it is a file, and no folder; move that file, or choose another path",
    errno.EISDIR: "it is a folder where a file is expected; move it away, and give the same command again",
    errno.EROFS: "the file system is mounted for reading alone; choose another path",
    errno.EMFILE: "raise the limit of open files with `ulimit -n`",
    errno.ENFILE: "the machine has too many open files; end other programs",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), ROOM),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ENOTCONN), AGAIN),
    **dict.fromkeys((errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EREMOTEIO), AGAIN),
}
WITHOUT_PATH = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)  # of a write: no mistake of a program's


def refusal(error: OSError) -> UserError | None:
    """The line for what the system refuses about a path; None for an error that says nothing to a user."""
    if error.errno == errno.ENOENT and _lost_working_folder():
        return UserError("the working directory has been removed; change to another, and try again")
    if error.errno not in ADVICE or (error.filename is None and error.errno not in WITHOUT_PATH):
        return None
    path = "a file" if error.filename is None else shortened(os.fsdecode(os.fspath(error.filename)))
    return UserError(f"{path}: {error.strerror}; {ADVICE[error.errno]}")


@contextmanager
def refused_paths() -> Iterator[None]:
    """Raises UserError in place of an OSError that has a `refusal`."""
    try:
        yield
    except OSError as error:
        if not (line := refusal(error)):
            raise
        raise line from error


def shortened(path: str, longest: int = 300) -> str:
    """A path for a message: without its middle where it is longer."""
    return path if len(path) <= longest else f"{path[: longest // 2]}…{path[-longest // 2 :]}"


def _lost_working_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False
