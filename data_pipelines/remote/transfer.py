"""Fetches one file from elsewhere: whole, checked, and going on where a transfer broke off."""

import hashlib
import io
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from data_pipelines.common.errors import UserError
from data_pipelines.common.retry import Interrupted, TransientError

TIMEOUT = 30.0  # seconds without a byte, then a transfer has failed
CHUNK = 1 << 18  # bytes read at once
DESCRIPTION_BYTES = 1 << 28  # the longest dataset.json that is accepted: that of a million shards


@dataclass(frozen=True)
class Stream:
    """Bytes on their way: the first is number `start` of the file, `length` follow (None: unknown).

    read: returns the next bytes, none at the end; raises TransientError.
    """

    start: int
    length: int | None
    read: Callable[[], bytes]


class RemoteFiles(Protocol):
    """What fetches the files below a remote root: `Web` or `Command`."""

    advice: str

    def address(self, name: str) -> str: ...

    def open(self, name: str, start: int, stop: threading.Event) -> AbstractContextManager[Stream]: ...


def description(source: RemoteFiles, stop: threading.Event) -> bytes:
    """dataset.json. Raises TransientError, UserError or Interrupted."""
    buffer, name = io.BytesIO(), "dataset.json"
    with source.open(name, 0, stop) as stream:
        while chunk := _next(stream, stop):
            buffer.write(chunk)
            if buffer.tell() > DESCRIPTION_BYTES:
                raise UserError(f"{source.address(name)} is longer than any dataset.json; check data.root")
    if stream.length is not None and buffer.tell() < stream.length:
        raise TransientError(source.address(name), f" broke off after {buffer.tell():,} bytes", source.advice)
    return buffer.getvalue()


def download(
    source: RemoteFiles,
    name: str,
    part: BinaryIO,
    stop: threading.Event,
    size: int | None = None,
    sha256: str | None = None,
    progress: Callable[[int, int | None], None] = lambda have, size: None,
    says: str = "dataset.json says",
) -> None:
    """Fetches a file into `part`, which is open for reading and writing; keeps what that holds already.

    Never more than `size` bytes are written. A source that cannot start in the middle, and bytes that turn
    out to be wrong, let it begin again.

    Args:
        source: of the file.
        name: of the file, below the source's root.
        stop: ends the transfer when it is set.
        size: bytes of the whole file; None: as many as the source announces.
        sha256: of the whole file, in hex; None leaves the check to the caller.
        progress: receives the bytes that are here, and those of the whole file where they are known.
        says: where size and digest come from, for messages.

    Raises:
        TransientError: the transfer failed, or brought another size or digest.
        UserError: the source refuses for good.
        Interrupted: `stop` was set.
        OSError: the file cannot be written.
    """
    address, (digest, have) = source.address(name), _resume(part, size)
    try:
        if size is None or have < size:
            with source.open(name, have, stop) as stream:
                announced = None if stream.length is None else stream.start + stream.length
                if size is None:
                    size = announced
                elif announced not in (None, size):
                    what = f" has {announced:,} bytes where {says} {size:,}"
                    raise TransientError(address, what, source.advice)
                if stream.start != have:
                    digest, have = hashlib.sha256(), _cut(part)
                while chunk := _next(stream, stop):
                    if size is not None and have + len(chunk) > size:
                        _cut(part)
                        what = f" has more bytes, where {says} {size:,}"
                        raise TransientError(address, what, source.advice)
                    part.write(chunk)
                    digest.update(chunk)
                    have += len(chunk)
                    progress(have, size)
    except TransientError as error:
        error.reached = have
        raise
    if size is not None and have < size:
        raise TransientError(address, f" broke off after {have:,} of {size:,} bytes", source.advice, have)
    if sha256 is not None and digest.hexdigest() != sha256:
        _cut(part)
        raise TransientError(address, f" is not what {says}: its digest differs", source.advice, have)


def _resume(part: BinaryIO, size: int | None) -> tuple[Any, int]:
    """The digest and the number of the bytes that a transfer left in `part`; more than `size` are cut off."""
    digest, have = hashlib.sha256(), 0
    while block := part.read(CHUNK if size is None else min(CHUNK, size - have)):
        digest.update(block)
        have += len(block)
    part.truncate(have)
    return digest, have


def _next(stream: Stream, stop: threading.Event) -> bytes:
    if stop.is_set():
        raise Interrupted
    return stream.read()


def _cut(part: BinaryIO) -> int:
    """Empties a file."""
    part.seek(0)
    return part.truncate(0)
