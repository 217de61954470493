"""Files that are either whole or not there: write beside, flush, rename.

A process may be killed between any two calls and the machine may lose power: whoever opens the name reads
the old content or the new, never a piece. One writer a file at a time: the temporary name is a fixed one, so
that what a killed process left behind is overwritten by the next instead of piling up.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipelines.common.errors import UserError
from data_pipelines.common.paths import ADVICE


def flush(path: Path) -> None:
    """Waits until a file's bytes, or the names in a folder, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path, flush_name: bool = True, temporary: Path | None = None) -> Iterator[Path]:
    """Yields a temporary path to write; on leaving, it is flushed and takes the place of `path`.

    If the block or the flush fails, the temporary file is removed and `path` is as before.

    Args:
        flush_name: False leaves the folder's flush to the caller; nothing fails once `path` is there.
        temporary: in the same file system; where several processes may write `path` at the same time, each
            needs its own. None: beside `path`.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = temporary or path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if flush_name:
        flush(path.parent)


def replace_bytes(path: Path, data: bytes, temporary: Path | None = None) -> None:
    """Makes `data` the content of `path`, whole or not at all; arguments and errors as of `replacing`."""
    with replacing(path, temporary=temporary) as part:
        part.write_bytes(data)


def replace_text(path: Path, text: str) -> None:
    """Makes `text` (UTF-8) the content of `path`, whole or not at all. Raises UserError if it cannot."""
    try:
        replace_bytes(Path(path), text.encode())
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError, key: str = "outputs=") -> UserError:
    """The line a user reads when a file or folder cannot be written; `key` is what names another."""
    if error.errno == errno.EISDIR:
        return UserError(f"cannot write {path}: {error.strerror}; {ADVICE[error.errno]}")
    return UserError(
        f"cannot write {path}: {error.strerror or error}; "
        f"make room or give the right to write there, or choose another place with `{key}`"
    )


def file_digest(path: str | Path, algorithm: str = "sha256") -> str:
    """The digest (hex) of a file. It finds damage; md5, as publishers give it, protects from no attacker."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
