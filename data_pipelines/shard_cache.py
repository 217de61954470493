"""A folder of bounded size for the files of a data set that lies elsewhere.

CACHE/dataset.json  train/000000.npy  train/000000.tar  tars/<digest>.tar  whole, their digests were checked
CACHE/train/000001.tar.part                                                on its way, locked by who brings it
CACHE/.lock                                                                held while room is made

Any number of processes share it. A file has its name only once it is whole, one process fetches it while the
others wait, and who dies leaves no lock behind. Files that are removed may still be open: they are read on.
"""

import fcntl
import os
import threading
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_pipelines.access import cache_folder
from data_pipelines.dataset import Dataset, Shard, describe, index_name
from data_pipelines.errors import UserError
from data_pipelines.patience import Trouble
from data_pipelines.remote import source_of
from data_pipelines.transfer import download

PART = ".part"


@dataclass(frozen=True)
class File:
    """name: where it lies in the cache; at: where it is fetched from, below the root; sha256 in hex."""

    name: str
    at: str
    bytes: int
    sha256: str


def index_of(shard: Shard) -> File:
    name = index_name(shard.name)
    return File(name, name, shard.index_bytes, shard.index_sha256)


def tar_of(shard: Shard) -> File:
    """Several shards may share a tar that was there before: it is kept once."""
    name = f"tars/{shard.sha256}.tar" if shard.path else shard.name
    return File(name, shard.path or shard.name, shard.bytes, shard.sha256)


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
                part.write_text(describe(dataset), encoding="utf-8")
                os.replace(part, self.folder / "dataset.json")
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
            part = self._claim(file, keep)
            if part is None:
                return False
            with part:
                if not self.has(file):
                    download(self.source, file.at, part, file.bytes, file.sha256, stop)
                    part.flush()
                    os.fsync(part.fileno())
                    os.replace(self._part(file), self.path(file))
            return True
        except OSError as error:
            what = f" cannot be written ({error.strerror})"
            advice = "make room there, or choose another folder with data.cache"
            raise Trouble(str(self.path(file)), what, advice) from None

    def arrived(self, file: File) -> int:
        """Bytes of a file that is on its way."""
        try:
            return os.stat(self._part(file)).st_size
        except OSError:
            return 0

    def _part(self, file: File) -> Path:
        return self.folder / (file.name + PART)

    def _claim(self, file: File, keep: list[set[str]]) -> BinaryIO | None:
        """The file's beginnings, open and locked; None where another has them."""
        path = self._part(file)
        with self._alone():
            if not path.exists():
                self._make_room(file, keep)
            path.parent.mkdir(exist_ok=True)
            part = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
            # Who holds the lock may have finished, and renamed it, in this moment.
            if _locked(part) and _same(part, path):
                return part
        part.close()
        return None

    def _make_room(self, file: File, keep: list[set[str]]) -> None:
        """Removes files until this one fits. What is on its way counts in its full length."""
        found = sorted(self._files())
        free = self.bound - sum(size for _, size, _ in found) - file.bytes
        ours = [(size, name, name.removesuffix(PART)) for _, size, name in found]
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
                    whole = self._sizes.get(inside.removesuffix(PART), 0) if inside.endswith(PART) else 0
                    yield status.st_mtime_ns, max(whole, status.st_size), inside

    def _remove(self, name: str) -> bool:
        path = self.folder / name
        if not name.endswith(PART):
            path.unlink(missing_ok=True)
            return True
        with suppress(FileNotFoundError), open(path, "r+b") as part:
            if not _locked(part):
                return False  # somebody fetches it
            path.unlink()
        return True

    @contextmanager
    def _alone(self):
        with open(self.folder / ".lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _locked(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
