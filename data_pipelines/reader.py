"""Sample ids -> encoded bytes, by offset from the shards' index.

Reads with pread into memory of our own and never maps a shard: a shard that vanishes or shrinks
under a memory map kills the process, here it is an error that says which file, after it was tried
again for as long as there is patience. What lies elsewhere is read from its cache.
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
        dataset: as `load_dataset` gives it.
        split: its name, or several joined by "+" to be read as one: the ids of the first, then the second's.
        stopping: whether whoever waits for images was told to stop, and shall not if they cannot be read.

    Where a read fails for a while, `entries` and `read` wait as the `patience` that they are given says, or
    else as the data set's access does, until `close`.

    Raises:
        UserError: no such split, or it is empty, or named twice; or there is no place for the cache.
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
        self._patience = Retry(dataset.access.patience)
        self._fetcher = Fetcher(ShardCache(dataset)) if dataset.remote else None
        self._announced: list[list[int]] = []

    def check_room(self, window: int) -> None:
        """Raises UserError where the cache, if there is one, has no room for any `window` shards."""
        if self._fetcher:
            check_room(self._fetcher.cache, self._shards, window)

    def ahead(self, now: np.ndarray, soon: np.ndarray) -> None:
        """Announces what is read now and next, by one sample id or more of each shard, in their order."""
        if self._fetcher is None:
            return
        parts = [list(dict.fromkeys(self._shard_of(ids).tolist())) for ids in (now, soon)]
        if self._announced == parts:
            return
        self._announced = parts
        with self._lock:  # an open file that was removed from the cache still takes its room
            for shard in self._handles.keys() - {*parts[0], *parts[1]}:
                os.close(self._handles.pop(shard))
        files = [[make(self._shards[s]) for s in part for make in (index_of, tar_of)] for part in parts]
        self._fetcher.ahead(*files)

    def entries(self, ids: np.ndarray, patience: Retry | None = None) -> np.ndarray:
        """The index rows of samples (`dataset.INDEX`: offset, size, height, width, label), [n].

        Raises:
            UserError: an index is gone, cannot be read or is not what it should be.
            Interrupted: the patience was stopped.
        """
        patience, shards = patience or self._patience, self._shard_of(ids)
        parts, places = np.divmod(ids - self.first[shards], INDEX_ROWS)
        rows, held = np.empty(len(ids), INDEX), shards << 32 | parts
        for key in np.unique(held):
            mine, shard, part = held == key, int(key) >> 32, int(key) & 0xFFFFFFFF
            rows[mine] = patience(partial(self._index, shard, part, patience))[places[mine]]
        return rows

    def read(self, ids: np.ndarray, patience: Retry | None = None) -> list[np.ndarray]:
        """The encoded images of samples, each a uint8 array, in the order of `ids`.

        Raises:
            UserError: a shard is gone, cannot be read or ends early.
            Interrupted: the patience was stopped.
        """
        patience = patience or self._patience
        shards, entries = self._shard_of(ids), self.entries(ids, patience)
        images: list[np.ndarray] = [np.empty(0, np.uint8)] * len(ids)
        for slot in np.lexsort((entries["offset"], shards)):  # in the order of the disk
            size = int(entries["size"][slot])
            data = self._pread(int(shards[slot]), size, int(entries["offset"][slot]), patience)
            images[slot] = np.frombuffer(data, np.uint8)
        if self._fetcher:
            for shard in np.unique(shards):
                self._fetcher.cache.touch(tar_of(self._shards[shard]))
        return images

    def describe(self, sample: int, patience: Retry | None = None) -> str:
        """Where a sample lies, for messages: its member's name, shard and place. Raises as `read`."""
        patience, shard = patience or self._patience, int(self._shard_of(np.array([sample]))[0])
        offset = int(self.entries(np.array([sample]), patience)["offset"][0])
        header = self._pread(
            shard, TAR_BLOCK, offset - TAR_BLOCK, patience
        )  # a tar member's header precedes it
        name = header[:100].split(b"\0")[0].decode("utf-8", "replace")
        return f"{name} in {self._told(shard)}"

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all waiting and closes the files; they are opened again when somebody reads."""
        self._patience.stop()
        self._patience = Retry(self.dataset.access.patience)
        if self._fetcher:
            self._fetcher.close()
            self._announced = []
        with self._lock:
            while self._handles:
                os.close(self._handles.popitem()[1])

    def _shard_of(self, ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.first, ids, side="right") - 1

    def _index(self, shard: int, part: int, patience: Retry) -> np.ndarray:
        with self._lock:
            if (rows := self._rows.get((shard, part))) is not None:
                self._rows.move_to_end((shard, part))
                return rows
        rows = self._load_index(shard, part, patience)
        with self._lock:
            self._rows[shard, part] = rows
            if len(self._rows) > OPEN_SHARDS:
                self._rows.popitem(last=False)
        return rows

    def _load_index(self, shard: int, part: int, patience: Retry) -> np.ndarray:
        """Part number `part` of a shard's index, of `INDEX_ROWS` rows. Raises Trouble."""
        path, images = self._index_path(shard), self.shards[shard]
        size = min(INDEX_ROWS, images - part * INDEX_ROWS) * INDEX.itemsize
        try:
            with open(self._open(path, index_of, shard, patience), "rb") as file:
                read_magic(file)
                shape, _, dtype = read_array_header_1_0(file)
                file.seek(part * INDEX_ROWS * INDEX.itemsize, os.SEEK_CUR)
                data = file.read(size)
        except (OSError, ValueError, SyntaxError, TokenError) as error:  # numpy parses Python
            why = " ".join(str(error).split())
            raise self._trouble(path, f": the shard's index cannot be read ({why})") from None
        if dtype != INDEX or shape != (images,):
            found, expected = f"{dtype} {shape}", f"{images} rows of {INDEX.names}"
            raise self._trouble(path, f": expected {expected}, found {found}")
        if len(data) < size:
            raise self._trouble(path, ": the shard's index ends early")
        return np.frombuffer(data, INDEX)

    def _pread(self, shard: int, size: int, offset: int, patience: Retry) -> bytes:
        try:
            return self._attempt(shard, size, offset, patience)
        except TransientError as trouble:
            return patience.again(partial(self._attempt, shard, size, offset, patience), trouble)

    def _attempt(self, shard: int, size: int, offset: int, patience: Retry) -> bytes:
        try:
            with self._lock:
                if (handle := self._handles.get(shard)) is not None:
                    self._handles.move_to_end(shard)
                    data = os.pread(handle, size, offset)
            if handle is None:
                handle = self._open(self._path(shard), tar_of, shard, patience)
                with self._lock:
                    self._keep(shard, handle)
                    data = os.pread(handle, size, offset)
        except OSError as error:
            self._forget(shard)
            raise self._trouble(self._path(shard), f" cannot be read ({error.strerror})") from None
        if len(data) < size:
            self._forget(shard)
            raise self._trouble(self._path(shard), f": ends before byte {offset + size}")
        return data

    def _open(self, path: Path, file: Callable[[Shard], File], shard: int, patience: Retry) -> int:
        """A handle; of what lies elsewhere, once it is in the cache. Raises OSError, and as `Fetcher.get`."""
        if self._fetcher is None:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        for _ in range(ROUNDS):
            self._fetcher.get(file(self._shards[shard]), patience)
            with suppress(FileNotFoundError):  # others share the cache, and make room in it
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        advice = "raise data.cache_bytes, or give each run its own data.cache"
        raise TransientError(str(path), " is removed again and again by those who share the cache", advice)

    def _keep(self, shard: int, handle: int) -> None:
        if (other := self._handles.pop(shard, None)) is not None:
            os.close(other)  # another thread was as quick
        self._handles[shard] = handle
        if len(self._handles) > OPEN_SHARDS:
            os.close(self._handles.popitem(last=False)[1])

    def _forget(self, shard: int) -> None:
        """What is tried again is opened again: another file may have its name by then."""
        with self._lock:
            if (handle := self._handles.pop(shard, None)) is not None:
                os.close(handle)

    def _index_path(self, shard: int) -> Path:
        # The cache knows where it is: each machine may have it elsewhere than rank 0, which made `root`.
        held = self._shards[shard]
        return (
            self._fetcher.cache.path(index_of(held)) if self._fetcher else self.root / index_name(held.name)
        )

    def _path(self, shard: int) -> Path:
        held = self._shards[shard]
        return self._fetcher.cache.path(tar_of(held)) if self._fetcher else tar_path(self.root, held)

    def _told(self, shard: int) -> str:
        """Where a shard lies, as the user would say."""
        held = self._shards[shard]
        return (
            self._fetcher.cache.source.address(held.path or held.name)
            if self._fetcher
            else str(self._path(shard))
        )

    def _trouble(self, path: Path, what: str) -> TransientError:
        advice = f"check with: python -m data_pipelines.shards verify {self.root}"
        return TransientError(
            str(path), what, "check the disk that holds the cache" if self._fetcher else advice
        )
