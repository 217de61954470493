"""Fetches one file of a data set from elsewhere: whole, checked, and going on where a transfer broke off."""

import hashlib
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from data_pipelines.common.errors import UserError
from data_pipelines.common.retry import Interrupted, TransientError

TIMEOUT = 30.0  # seconds without a byte, then a transfer has failed
CHUNK = 1 << 18  # bytes read at once
DESCRIPTION_BYTES = 1 << 28  # the longest dataset.json that is taken: that of a million shards


@dataclass(frozen=True)
class Stream:
    """Bytes on their way: the first is number `start` of the file, `length` follow (None: not told).

    read: gives the next bytes, none at the end; raises Trouble.
    """

    start: int
    length: int | None
    read: Callable[[], bytes]


def description(source, stop: threading.Event) -> bytes:
    """dataset.json. Raises Trouble, UserError or Interrupted."""
    buffer, name = io.BytesIO(), "dataset.json"
    with source.open(name, 0, stop) as stream:
        while chunk := _next(stream, stop):
            buffer.write(chunk)
            if buffer.tell() > DESCRIPTION_BYTES:
                raise UserError(f"{source.address(name)} is longer than any dataset.json; check data.root")
    if stream.length is not None and buffer.tell() < stream.length:
        raise TransientError(source.address(name), f" broke off after {buffer.tell():,} bytes", source.advice)
    return buffer.getvalue()


def download(source, name: str, part: BinaryIO, size: int, sha256: str, stop: threading.Event) -> None:
    """Brings a file, open for reading and writing, to `size` bytes with this digest; keeps what it has.

    Never more than `size` bytes are written. A source that cannot start in the middle, and bytes that turn
    out to be wrong, let it begin again.

    Raises:
        Trouble: the transfer failed, or brought what dataset.json does not say.
        UserError: the source says that it will not.
        Interrupted: `stop` was set.
        OSError: the file cannot be written.
    """
    address, digest, have = source.address(name), hashlib.sha256(), 0
    while have < size and (block := part.read(min(CHUNK, size - have))):  # of a transfer that broke off
        digest.update(block)
        have += len(block)
    part.truncate(have)
    try:
        if have < size:
            with source.open(name, have, stop) as stream:
                if stream.length is not None and stream.start + stream.length != size:
                    found = stream.start + stream.length
                    what = f" has {found:,} bytes where dataset.json says {size:,}"
                    raise TransientError(address, what, source.advice)
                if stream.start != have:
                    digest, have = hashlib.sha256(), _cut(part)
                while chunk := _next(stream, stop):
                    if have + len(chunk) > size:
                        _cut(part)
                        what = f" has more bytes than the {size:,} of dataset.json"
                        raise TransientError(address, what, source.advice)
                    part.write(chunk)
                    digest.update(chunk)
                    have += len(chunk)
    except TransientError as trouble:
        trouble.reached = have
        raise
    if have < size:
        raise TransientError(address, f" broke off after {have:,} of {size:,} bytes", source.advice, have)
    if digest.hexdigest() != sha256:
        _cut(part)
        raise TransientError(
            address, " is not what dataset.json says: its digest differs", source.advice, have
        )


def _next(stream: Stream, stop: threading.Event) -> bytes:
    if stop.is_set():
        raise Interrupted
    return stream.read()


def _cut(part: BinaryIO) -> int:
    """Empties a file."""
    part.seek(0)
    return part.truncate(0)
