"""Sample ids -> encoded bytes, by offset from the shards' index.

Shards are read with pread and never mapped: a shard that vanishes or shrinks under a memory map kills
the process; here it is an error that names the file, once the retries have failed. Remote data sets are read
from their cache.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_magic

from data_pipelines.common.retry import Retry, TransientError
from data_pipelines.dataset import INDEX, Dataset, Shard, index_name, tar_path
from data_pipelines.remote.cache import File, ShardCache, check_room, index_of, tar_of
from data_pipelines.remote.fetcher import Fetcher

OPEN_SHARDS = 64  # file handles, and parts of indices, kept; a plan's window is 16 shards by default
INDEX_ROWS = 16_384  # of an index are read at once, 460 kB: a shard may hold millions of images
TAR_BLOCK = 512
ROUNDS = 20  # that a file may be gone from the cache again before it was opened


class Reader:
    """Random access to the images of one split, from any number of threads.

    Args:
        dataset: as `load_dataset` returns it.
        split: its name, or several joined by "+" to be read as one: the ids of the first, then the second's.
        stopping: whether the run should stop; whoever waits for images that cannot be read then gives up.

    A read that fails is tried again by the `retry` argument of the methods; by default for the
    `retry_seconds` of the data set's access, until `close`. Use it in a `with` statement, or call `close`.

    Raises:
        UserError: no such split, or it is empty, or named twice; or the cache's folder cannot be made.
    """

    def __init__(self, dataset: Dataset, split: str, stopping: Callable[[], bool] = lambda: False):
        self.dataset, self.root, self.split, self.stopping = dataset, dataset.root, split, stopping
        self._shards = dataset.split(split).shards
        self.names = [shard.name for shard in self._shards]
        self.shards = [shard.images for shard in self._shards]
        self.first = np.cumsum([0, *self.shards])  # id of each shard's first sample
        self.images = int(self.first[-1])
        self._rows: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()  # parts of indices
        self._handles: OrderedDict[int, int] = OrderedDict()
        # Training and evaluation read through one reader, each in a thread of its own: a handle must not
        # be closed, and its number given to another shard, between being looked up and being read.
        self._lock = threading.Lock()
        self._retry = Retry(dataset.access.retry_seconds)
        self._fetcher = Fetcher(ShardCache(dataset)) if dataset.remote else None
        self._announced: list[list[int]] = []

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_room(self, window: int) -> None:
        """Raises UserError where the cache, if there is one, has no room for any `window` shards."""
        if self._fetcher:
            check_room(self._fetcher.cache, self._shards, window)

    def ahead(self, now: np.ndarray, soon: np.ndarray) -> None:
        """Announces what is read now and next, by one sample id or more of each shard, in their order.

        Of a remote data set, these shards are fetched; a folder needs no announcement.
        """
        if self._fetcher is None:
            return
        parts = [list(dict.fromkeys(self._shard_of(ids).tolist())) for ids in (now, soon)]
        if self._announced == parts:
            return
        self._announced = parts
        with self._lock:  # an open file that was removed from the cache still takes its room
            for shard in self._handles.keys() - {*parts[0], *parts[1]}:
                os.close(self._handles.pop(shard))
        files = [[file(self._shards[s]) for s in part for file in (index_of, tar_of)] for part in parts]
        self._fetcher.ahead(*files)

    def entries(self, ids: np.ndarray, retry: Retry | None = None) -> np.ndarray:
        """The index rows of samples (`dataset.INDEX`: offset, size, height, width, label), [n].

        Raises:
            UserError: an index is gone, cannot be read or is not what it should be.
            Interrupted: the retry was stopped.
        """
        retry, shards = retry or self._retry, self._shard_of(ids)
        parts, places = np.divmod(ids - self.first[shards], INDEX_ROWS)
        rows, keys = np.empty(len(ids), INDEX), shards << 32 | parts
        for key in np.unique(keys):
            slots, shard, part = keys == key, int(key) >> 32, int(key) & 0xFFFFFFFF
            rows[slots] = retry(partial(self._index, shard, part, retry))[places[slots]]
        return rows

    def read(self, ids: np.ndarray, retry: Retry | None = None) -> list[np.ndarray]:
        """The encoded images of samples, each a uint8 array, in the order of `ids`.

        Raises:
            UserError: a shard is gone, cannot be read or ends early.
            Interrupted: the retry was stopped.
        """
        retry = retry or self._retry
        shards, entries = self._shard_of(ids), self.entries(ids, retry)
        images: list[np.ndarray] = [np.empty(0, np.uint8)] * len(ids)
        for slot in np.lexsort((entries["offset"], shards)):  # in the order of the disk
            size = int(entries["size"][slot])
            data = self._pread(int(shards[slot]), size, int(entries["offset"][slot]), retry)
            images[slot] = np.frombuffer(data, np.uint8)
        if self._fetcher:
            for shard in np.unique(shards):
                self._fetcher.cache.touch(tar_of(self._shards[shard]))
        return images

    def describe(self, sample: int, retry: Retry | None = None) -> str:
        """Where a sample lies, for messages: its member's name and its shard. Raises as `read`."""
        retry, shard = retry or self._retry, int(self._shard_of(np.array([sample]))[0])
        offset = int(self.entries(np.array([sample]), retry)["offset"][0])
        # A tar member's header precedes it.
        header = self._pread(shard, TAR_BLOCK, offset - TAR_BLOCK, retry)
        name = header[:100].split(b"\0")[0].decode("utf-8", "replace")
        return f"{name} in {self._address(shard)}"

    def close(self) -> None:
        """Ends all waiting and closes the files. A later read opens them again."""
        self._retry.stop()
        self._retry = Retry(self.dataset.access.retry_seconds)
        if self._fetcher:
            self._fetcher.close()
            self._announced = []
        with self._lock:
            while self._handles:
                os.close(self._handles.popitem()[1])

    def _shard_of(self, ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.first, ids, side="right") - 1

    def _index(self, shard: int, part: int, retry: Retry) -> np.ndarray:
        with self._lock:
            if (rows := self._rows.get((shard, part))) is not None:
                self._rows.move_to_end((shard, part))
                return rows
        rows = self._load_index(shard, part, retry)
        with self._lock:
            self._rows[shard, part] = rows
            if len(self._rows) > OPEN_SHARDS:
                self._rows.popitem(last=False)
        return rows

    def _load_index(self, shard: int, part: int, retry: Retry) -> np.ndarray:
        """Part number `part` of a shard's index, of `INDEX_ROWS` rows. Raises TransientError."""
        path, images = self._index_path(shard), self.shards[shard]
        size = min(INDEX_ROWS, images - part * INDEX_ROWS) * INDEX.itemsize
        try:
            with open(self._open(path, index_of, shard, retry), "rb") as file:
                read_magic(file)
                shape, _, dtype = read_array_header_1_0(file)
                file.seek(part * INDEX_ROWS * INDEX.itemsize, os.SEEK_CUR)
                data = file.read(size)
        except (OSError, ValueError, SyntaxError, TokenError) as error:  # numpy parses Python
            why = " ".join(str(error).split())
            raise self._failure(path, f": the shard's index cannot be read ({why})") from None
        if dtype != INDEX or shape != (images,):
            expected = f"{images} rows of {INDEX.names}"
            raise self._failure(path, f": expected {expected}, found {dtype} {shape}")
        if len(data) < size:
            raise self._failure(path, ": the shard's index ends early")
        return np.frombuffer(data, INDEX)

    def _pread(self, shard: int, size: int, offset: int, retry: Retry) -> bytes:
        try:
            return self._attempt(shard, size, offset, retry)
        except TransientError as error:
            return retry.again(partial(self._attempt, shard, size, offset, retry), error)

    def _attempt(self, shard: int, size: int, offset: int, retry: Retry) -> bytes:
        try:
            with self._lock:
                if (handle := self._handles.get(shard)) is not None:
                    self._handles.move_to_end(shard)
                    data = os.pread(handle, size, offset)
            if handle is None:
                handle = self._open(self._path(shard), tar_of, shard, retry)
                with self._lock:
                    self._keep(shard, handle)
                    data = os.pread(handle, size, offset)
        except OSError as error:
            self._forget(shard)
            raise self._failure(self._path(shard), f" cannot be read ({error.strerror})") from None
        if len(data) < size:
            self._forget(shard)
            raise self._failure(self._path(shard), f": ends before byte {offset + size}")
        return data

    def _open(self, path: Path, file: Callable[[Shard], File], shard: int, retry: Retry) -> int:
        """A handle; of a remote file, once it is in the cache. Raises OSError, and as `Fetcher.get`."""
        if self._fetcher is None:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        for _ in range(ROUNDS):
            self._fetcher.get(file(self._shards[shard]), retry)
            with suppress(FileNotFoundError):  # others share the cache and make room in it
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        advice = "raise data.cache_bytes, or give each run its own data.cache"
        raise TransientError(str(path), " is removed again and again by those who share the cache", advice)

    def _keep(self, shard: int, handle: int) -> None:
        if (other := self._handles.pop(shard, None)) is not None:
            os.close(other)  # another thread opened it meanwhile
        self._handles[shard] = handle
        if len(self._handles) > OPEN_SHARDS:
            os.close(self._handles.popitem(last=False)[1])

    def _forget(self, shard: int) -> None:
        """Closes a shard, so that the next attempt opens it anew: another file may have its name by then."""
        with self._lock:
            if (handle := self._handles.pop(shard, None)) is not None:
                os.close(handle)

    def _index_path(self, shard: int) -> Path:
        # Only the cache knows the path: each machine may have it elsewhere than rank 0, which made `root`.
        entry = self._shards[shard]
        if self._fetcher:
            return self._fetcher.cache.path(index_of(entry))
        return self.root / index_name(entry.name)

    def _path(self, shard: int) -> Path:
        entry = self._shards[shard]
        return self._fetcher.cache.path(tar_of(entry)) if self._fetcher else tar_path(self.root, entry)

    def _address(self, shard: int) -> str:
        """Where a shard lies, for messages: its path, or the address that it is fetched from."""
        entry = self._shards[shard]
        if self._fetcher:
            return self._fetcher.cache.source.address(entry.path or entry.name)
        return str(self._path(shard))

    def _failure(self, path: Path, what: str) -> TransientError:
        advice = f"check with: python -m data_pipelines.shards verify {self.root}"
        return TransientError(
            str(path), what, "check the disk that holds the cache" if self._fetcher else advice
        )
