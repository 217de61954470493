"""A folder of bounded size for the files of a remote data set.

CACHE/dataset.json  indices/<digest>.npy  tars/<digest>.tar   whole, their digests were checked
CACHE/tars/<digest>.tar.part                                  on its way, locked by its process
CACHE/tars/<digest>.tar.<number>.part                         the same where the file system has no locks
CACHE/.lock                                                   locked while room is made, or a file is named

Any number of processes share it. A file has its name only once it is whole, one process fetches it while the
others wait, and a process that dies leaves no lock behind. A removed file that is open can be read on.
"""

import os
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

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
QUIET = 2 * TIMEOUT  # seconds: a process that holds a lock, or writes no byte, for so long counts as hanging


@dataclass(frozen=True)
class File:
    """A file of the data set.

    Args:
        name: its place in the cache.
        remote_name: its place below the data set's root.
        bytes, sha256: what dataset.json says of it.
    """

    name: str
    remote_name: str
    bytes: int
    sha256: str


def index_of(shard: Shard) -> File:
    name = f"indices/{shard.index_sha256}.npy"
    return File(name, index_name(shard.name), shard.index_bytes, shard.index_sha256)


def tar_of(shard: Shard) -> File:
    """Its name is its digest: several shards, and data sets with other splits of them, may share it."""
    return File(f"tars/{shard.sha256}.tar", shard.path or shard.name, shard.bytes, shard.sha256)


class CacheFull(Exception):
    """No room can be made without removing files that must stay."""


class ShardCache:
    """The cache of one data set. Methods may be called from any thread.

    Raises:
        UserError: the folder cannot be made, or the data set would start a program and that is not allowed.
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
        """Marks a file as used now: those used longest ago are removed first."""
        with suppress(OSError):
            os.utime(self.path(file))

    def fetch(self, file: File, keep: list[set[str]], stop: threading.Event) -> bool:
        """Fetches a file that is not here yet; returns False where another process or thread is fetching it.

        Args:
            keep: names that are not removed to make room; where that leaves none, the next set counts.
            stop: ends the transfer when it is set.

        Raises:
            CacheFull: there is no room.
            TransientError: as `transfer.download`, or the disk refuses.
            UserError, Interrupted: as `transfer.download`.
        """
        try:
            if self.has(file):
                return True
            part = self._open_part(file, keep, stop)
            if part is None:
                return self.has(file)
            with part:
                try:
                    if not self.has(file):
                        download(self.source, file.remote_name, part, stop, file.bytes, file.sha256)
                        part.flush()
                        os.fsync(part.fileno())
                        with self._locked(stop):  # `_make_room` counts it under one of its two names
                            os.replace(part.name, self.path(file))
                finally:  # a part that is of no use, or that cannot be locked, is not continued
                    if self.has(file) or Path(part.name) != self._part(file):
                        Path(part.name).unlink(missing_ok=True)
            return True
        except OSError as error:
            what = f" cannot be written ({error.strerror})"
            advice = "make room there, or choose another folder with data.cache"
            raise TransientError(str(self.path(file)), what, advice) from None

    def bytes_arrived(self, file: File) -> int:
        """Bytes that are here of a file on its way."""
        try:
            return os.stat(self._part(file)).st_size
        except OSError:
            return 0

    def _part(self, file: File) -> Path:
        return self.folder / (file.name + PART)

    def _open_part(self, file: File, keep: list[set[str]], stop: threading.Event) -> BinaryIO | None:
        """Opens and locks the part of a file; None where another process has it, or has just finished it."""
        path = self._part(file)
        with self._locked(stop):
            if self.has(file):
                return None
            if not path.exists():
                self._make_room(file, keep)
            path.parent.mkdir(exist_ok=True)
            part = _open_or_create(path)
            locked = _try_lock(part)
            # Its former owner may have finished and renamed it in this moment.
            if locked and _is_at(part, path):
                return part
        part.close()
        if locked is not None:
            return None
        path.unlink(missing_ok=True)
        return _open_or_create(path.with_name(f"{path.stem}.{uuid.uuid4().hex}{PART}"))

    def _make_room(self, file: File, keep: list[set[str]]) -> None:
        """Removes files until this one fits; those on their way count in full. Raises CacheFull."""
        files = sorted(self._files())
        free = self.bound - sum(size for _, size, _ in files) - file.bytes
        known = [(size, name, _OF_A_PART.sub("", name)) for _, size, name in files]
        known = [entry for entry in known if entry[2] in self._sizes]
        for kept in keep:
            spare = [(size, name) for size, name, whole in known if whole not in kept]
            if free + sum(size for size, _ in spare) < 0:
                continue
            for size, name in spare:
                if free >= 0:
                    return
                if self._remove(name):
                    free += size
            if free >= 0:
                return
        raise CacheFull

    def _files(self) -> Iterable[tuple[int, int, str]]:
        """Of each file: when it was used last (ns), its length once it is whole (bytes), and its name."""
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
                locked = _try_lock(part)
                if locked is None:
                    locked = time.time() - os.fstat(part.fileno()).st_mtime > QUIET
                if locked:  # else another process fetches it
                    path.unlink()
                return locked
        except FileNotFoundError:  # a part: it is whole now, and takes as much room
            return False

    @contextmanager
    def _locked(self, stop: threading.Event) -> Iterator[None]:
        """Locks the cache for all processes. Raises Interrupted, or TransientError after `QUIET` seconds."""
        self.folder.mkdir(parents=True, exist_ok=True)  # a user who empties caches may have removed it
        path, end = self.folder / ".lock", time.monotonic() + QUIET
        with open(path, "a") as file:
            while _try_lock(file) is False:
                if stop.wait(0.01):
                    raise Interrupted
                if time.monotonic() > end:
                    what, advice = f" has been locked for {QUIET:g} s", "see which process hangs there"
                    raise TransientError(str(path), what, advice)
            yield


def _open_or_create(path: Path) -> BinaryIO:
    """Opens a file for reading and writing; its contents stay. It is made where there is none."""
    return open(path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o666))


def _try_lock(file: IO) -> bool | None:
    """Whether the file could be locked, without waiting; None where the file system has no locks."""
    try:
        return lock(file)
    except NoLocks:
        return None


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file still has this path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def check_room(cache: ShardCache, shards: Sequence[Shard], window: int) -> None:
    """Raises UserError where some `window` of these shards do not fit into a cache together."""
    sizes = sorted((shard.bytes + shard.index_bytes for shard in shards), reverse=True)
    needed = sum(sizes[:window]) + (cache.folder / "dataset.json").stat().st_size
    if needed > cache.bound:
        raise UserError(
            f"data.cache_bytes={cache.bound} is too little: {min(window, len(sizes))} shards, which are read "
            f"at a time, take up to {needed} bytes; give that much, or twice as much to fetch ahead"
        )
