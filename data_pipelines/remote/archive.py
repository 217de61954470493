"""Fetches a published archive once: continued where a transfer broke off, and named only when it is whole.

FOLDER/NAME         whole: its length and md5 were checked
FOLDER/NAME.part    on its way, locked by its process; the next process goes on from there
"""

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from tqdm import tqdm

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import file_digest, flush
from data_pipelines.common.locks import close_locked, open_locked
from data_pipelines.common.retry import Retry, TransientError
from data_pipelines.remote.transfer import download
from data_pipelines.remote.web import Web

GZIP = b"\x1f\x8b"  # its first bytes
LINE_EVERY = 60.0  # seconds between two lines about a transfer, where no terminal shows a bar


class NotFetched(UserError):
    """An archive could not be fetched."""


@dataclass(frozen=True)
class Published:
    """A gzip file as its publisher describes it: address, md5 (hex) and length in bytes."""

    url: str
    md5: str
    bytes: int

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc


def part_of(path: Path) -> Path:
    """Where a file lies while it is fetched."""
    return path.with_name(f"{path.name}.part")


def arrived(file: Published, folder: Path) -> int:
    """Bytes of a file that are in a folder already, in a transfer that broke off or whole."""
    for path in (folder / file.name, part_of(folder / file.name)):
        with suppress(OSError):
            return path.stat().st_size
    return 0


def fetch(file: Published, folder: Path, by_hand: str, retry_seconds: float, progress: bool) -> Path:
    """Fetches a file into a folder, unless it is there; returns its path.

    A server that does not answer ends it at once. A transfer that breaks off is continued, for
    `retry_seconds` without a new byte; what has come by then stays for the next process. Bytes with another
    digest are removed; where some of them were from an earlier transfer, all are fetched once more.

    Args:
        by_hand: what a person can do where this fails: the end of a message.
        progress: a bar on a terminal, else a line a minute.

    Raises:
        NotFetched: there is no network, the server refuses or has another file, or the disk is full.
    """
    path = folder / file.name
    try:
        if _is_whole(path, file):
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with _locked_part(path) as part:
            if not _is_whole(path, file):  # another process may have fetched it in the meantime
                _fetch_into(part, file, by_hand, retry_seconds, progress)
                part.flush()
                os.fsync(part.fileno())
                os.replace(part_of(path), path)
                flush(folder)
    except OSError as error:
        what = f"{file.url} cannot be kept in {folder} ({error.strerror or error})"
        raise NotFetched(f"{what}; make room or give the right to write there, or {by_hand}") from None
    return path


def _is_whole(path: Path, file: Published) -> bool:
    try:
        return path.stat().st_size == file.bytes and file_digest(path, "md5") == file.md5
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def _locked_part(path: Path) -> Iterator[BinaryIO]:
    """The part of a file, open for reading and writing; one process has it, and the others wait."""
    part = part_of(path)
    while True:
        descriptor = open_locked(part)
        if descriptor is None:
            print(f"waiting for another process that is fetching {path.name}", file=sys.stderr, flush=True)
            descriptor = open_locked(part, wait=math.inf)
        assert descriptor is not None  # it was waited for
        with suppress(FileNotFoundError):  # its former owner has finished and renamed it
            if os.path.samestat(os.fstat(descriptor), os.stat(part)):
                break
        close_locked(descriptor)
    try:
        with open(part, "r+b") as file:
            yield file
    finally:
        with suppress(OSError):
            if part.stat().st_size == 0:
                part.unlink()
        close_locked(descriptor)


def _fetch_into(part: BinaryIO, file: Published, by_hand: str, retry_seconds: float, progress: bool) -> None:
    """Fetches the rest of a file into `part` and checks all of it. Raises NotFetched or OSError."""
    with suppress(UserError):  # of a page: nothing of it stays
        _check_is_gzip(part, file)
    before = os.fstat(part.fileno()).st_size
    for again in (True, False):
        try:
            _transfer(part, file, retry_seconds, progress)
            part.flush()
            if (digest := file_digest(part.name, "md5")) == file.md5:
                return
            if not (again and before):
                _check_is_gzip(part, file)
        except UserError as error:  # its advice is that of a data set behind a server
            raise NotFetched(f"{str(error).partition('; ')[0]}; {by_hand}") from None
        part.truncate(0)
        if not (again and before):
            raise NotFetched(f"{file.url} came with md5 {digest}, expected {file.md5}; {by_hand}")


def _transfer(part: BinaryIO, file: Published, retry_seconds: float, progress: bool) -> None:
    """Brings a file to its full length. Raises UserError or OSError."""
    root, _, name = file.url.rpartition("/")
    web, retry = Web(root), Retry(retry_seconds)
    hidden = None if progress else True  # None: shown on a terminal only
    have, last_line = arrived(file, Path(part.name).parent), time.monotonic()
    with tqdm(desc=name, total=file.bytes, initial=have, unit="B", unit_scale=True, disable=hidden) as bar:
        news = False

        def show(have: int, size: int | None) -> None:
            nonlocal news, last_line
            news = True
            bar.update(have - bar.n)
            if bar.disable and progress and time.monotonic() - last_line > LINE_EVERY:
                last_line = time.monotonic()
                print(f"{name}: {have / 1e6:,.0f} of {file.bytes / 1e6:,.0f} MB", flush=True)

        def attempt() -> None:
            part.seek(0)
            try:
                download(
                    *(web, name, part, retry.stopped, file.bytes), progress=show, says="its publisher says"
                )
            except TransientError:
                _check_is_gzip(part, file)
                raise

        try:
            attempt()
        except TransientError as failure:
            if not news:
                raise UserError(str(failure)) from None
            retry.again(attempt, failure)


def _check_is_gzip(part: BinaryIO, file: Published) -> None:
    """Raises UserError, and keeps nothing, where a page has come in place of the file, as of a login."""
    part.seek(0)
    start = part.read(60)
    if not start.startswith(GZIP[: len(start)]):
        part.truncate(0)
        shown = start.decode("ascii", "replace").partition("\n")[0].strip()
        raise UserError(
            f"{file.url} brought no archive but what begins with {shown[:40]!r}: a proxy, or a page where "
            "one logs in, may have answered in its place"
        )
