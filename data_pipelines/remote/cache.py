"""A folder of bounded size for the files of a data set that lies elsewhere.

CACHE/dataset.json  indices/<digest>.npy  tars/<digest>.tar   whole, their digests were checked
CACHE/tars/<digest>.tar.part                                  on its way, locked by who brings it
CACHE/tars/<digest>.tar.<number>.part                         the same where the file system has no locks
CACHE/.lock                                                   held while room is made, or a file gets its name

Any number of processes share it. A file has its name only once it is whole, one process fetches it while the
others wait, and who dies leaves no lock behind. Files that are removed may still be open: they are read on.
"""

import os
import re
import threading
import time
import uuid
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_pipelines.access import cache_folder
from data_pipelines.common.errors import UserError
from data_pipelines.common.files import replacing
from data_pipelines.common.locks import NoLocks, lock
from data_pipelines.common.retry import Interrupted, TransientError
from data_pipelines.dataset import Dataset, Shard, describe, index_name
from data_pipelines.remote.connect import source_of
from data_pipelines.remote.transfer import TIMEOUT, download

PART = ".part"
_OF_A_PART = re.compile(r"(\.[0-9a-f]{32})?\.part$")
QUIET = 2 * TIMEOUT  # seconds: who holds a lock, or has not written a byte, for so long is taken to hang


@dataclass(frozen=True)
class File:
    """name: where it lies in the cache; at: where it is fetched from, below the root; sha256 in hex."""

    name: str
    at: str
    bytes: int
    sha256: str


def index_of(shard: Shard) -> File:
    name = f"indices/{shard.index_sha256}.npy"
    return File(name, index_name(shard.name), shard.index_bytes, shard.index_sha256)


def tar_of(shard: Shard) -> File:
    """By its digest, as several shards, and data sets that split the same shards otherwise, may share it."""
    return File(f"tars/{shard.sha256}.tar", shard.path or shard.name, shard.bytes, shard.sha256)


class Full(Exception):
    """No room can be made without removing what is to be kept."""


class ShardCache:
    """The cache of one data set. Methods may be called from any thread.

    Raises:
        UserError: the folder cannot be made, or the data set would start a program and may not.
    """

    def __init__(self, dataset: Dataset):
        self.folder = cache_folder(dataset.access, dataset.fingerprint)
        self.bound = dataset.access.cache_bytes
        self.source = source_of(dataset.where, dataset.access)
        shards = [shard for split in dataset.splits.values() for shard in split.shards]
        files = [file for shard in shards for file in (index_of(shard), tar_of(shard))]
        self._sizes = {file.name: file.bytes for file in files}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "dataset.json").exists():
                part = self.folder / f"dataset.json.{os.getpid()}{PART}"
                with replacing(self.folder / "dataset.json", flush_name=False, temporary=part):
                    part.write_text(describe(dataset), encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written ({error.strerror}); choose another folder with data.cache"
            ) from None

    def path(self, file: File) -> Path:
        return self.folder / file.name

    def has(self, file: File) -> bool:
        try:
            return os.stat(self.path(file)).st_size == file.bytes
        except OSError:
            return False

    def touch(self, file: File) -> None:
        """Marks a file as needed now: those needed longest ago are removed first."""
        with suppress(OSError):
            os.utime(self.path(file))

    def bring(self, file: File, keep: list[set[str]], stop: threading.Event) -> bool:
        """Fetches a file, if it is not here; False where another process or thread is at it.

        Args:
            keep: names that are not removed to make room; where that is not enough, the next set counts.

        Raises:
            Full: there is no room.
            Trouble, UserError, Interrupted: as `transfer.download`, or the disk refuses.
        """
        try:
            if self.has(file):
                return True
            part = self._claim(file, keep, stop)
            if part is None:
                return self.has(file)
            with part:
                try:
                    if not self.has(file):
                        download(self.source, file.at, part, stop, file.bytes, file.sha256)
                        part.flush()
                        os.fsync(part.fileno())
                        with self._alone(stop):  # who makes room counts it under one of its names
                            os.replace(part.name, self.path(file))
                finally:  # nobody goes on with what is of no use, or cannot be locked
                    if self.has(file) or Path(part.name) != self._part(file):
                        Path(part.name).unlink(missing_ok=True)
            return True
        except OSError as error:
            what = f" cannot be written ({error.strerror})"
            advice = "make room there, or choose another folder with data.cache"
            raise TransientError(str(self.path(file)), what, advice) from None

    def arrived(self, file: File) -> int:
        """Bytes of a file that is on its way."""
        try:
            return os.stat(self._part(file)).st_size
        except OSError:
            return 0

    def _part(self, file: File) -> Path:
        return self.folder / (file.name + PART)

    def _claim(self, file: File, keep: list[set[str]], stop: threading.Event) -> BinaryIO | None:
        """The file's beginnings, open and locked; None where another has them, or has just finished."""
        path = self._part(file)
        with self._alone(stop):
            if self.has(file):
                return None
            if not path.exists():
                self._make_room(file, keep)
            path.parent.mkdir(exist_ok=True)
            part = _begun(path)
            locked = _locked(part)
            # Who holds the lock may have finished, and renamed it, in this moment.
            if locked and _same(part, path):
                return part
        part.close()
        if locked is not None:
            return None
        path.unlink(missing_ok=True)
        return _begun(path.with_name(f"{path.stem}.{uuid.uuid4().hex}{PART}"))

    def _make_room(self, file: File, keep: list[set[str]]) -> None:
        """Removes files until this one fits. What is on its way counts in its full length."""
        found = sorted(self._files())
        free = self.bound - sum(size for _, size, _ in found) - file.bytes
        ours = [(size, name, _OF_A_PART.sub("", name)) for _, size, name in found]
        ours = [entry for entry in ours if entry[2] in self._sizes]
        for kept in keep:
            spare = [(size, name) for size, name, whole in ours if whole not in kept]
            if free + sum(size for size, _ in spare) < 0:
                continue
            for size, name in spare:
                if free >= 0:
                    return
                if self._remove(name):
                    free += size
            if free >= 0:
                return
        raise Full

    def _files(self) -> Iterable[tuple[int, int, str]]:
        """When each file was needed last, its length in the end, and its name."""
        for place, _, names in os.walk(self.folder):
            for name in names:
                path = Path(place, name)
                with suppress(FileNotFoundError):
                    status, inside = path.stat(), path.relative_to(self.folder).as_posix()
                    whole = self._sizes.get(_OF_A_PART.sub("", inside), 0) if inside.endswith(PART) else 0
                    yield status.st_mtime_ns, max(whole, status.st_size), inside

    def _remove(self, name: str) -> bool:
        path = self.folder / name
        try:
            if not name.endswith(PART):
                path.unlink()
                return True
            with open(path, "r+b") as part:
                locked = _locked(part)
                if locked is None:
                    locked = time.time() - os.fstat(part.fileno()).st_mtime > QUIET
                if locked:  # else somebody fetches it
                    path.unlink()
                return locked
        except FileNotFoundError:  # a part: it is whole now, and takes as much room
            return False

    @contextmanager
    def _alone(self, stop: threading.Event):
        self.folder.mkdir(parents=True, exist_ok=True)  # whoever empties caches may have removed it
        path, end = self.folder / ".lock", time.monotonic() + QUIET
        with open(path, "a") as file:
            while _locked(file) is False:
                if stop.wait(0.01):
                    raise Interrupted
                if time.monotonic() > end:
                    what, advice = f" has been locked for {QUIET:g} s", "see which process hangs there"
                    raise TransientError(str(path), what, advice)
            yield


def _begun(path: Path) -> BinaryIO:
    """A file open for reading and writing, made where there is none; what it holds stays."""
    return open(path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o666))


def _locked(file: BinaryIO) -> bool | None:
    """Whether the file could be locked, not waiting for it; None where there are no locks."""
    try:
        return lock(file)
    except NoLocks:
        return None


def _same(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def check_room(cache: ShardCache, shards: list[Shard], window: int) -> None:
    """Raises UserError where some `window` of these shards do not fit into a cache together."""
    sizes = sorted((shard.bytes + shard.index_bytes for shard in shards), reverse=True)
    needed = sum(sizes[:window]) + (cache.folder / "dataset.json").stat().st_size
    if needed > cache.bound:
        raise UserError(
            f"data.cache_bytes={cache.bound} is too little: {min(window, len(sizes))} shards, which are read "
            f"at a time, take up to {needed} bytes; give that much, or twice as much to fetch ahead"
        )
