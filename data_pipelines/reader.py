"""Sample ids -> encoded bytes, by offset from the shards' index.

Reads with pread into memory of our own and never maps a shard: a shard that vanishes or shrinks
under a memory map kills the process, here it is an error that says which file.
"""

import os
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_magic

from data_pipelines.dataset import INDEX, Dataset, index_name, tar_path
from data_pipelines.errors import UserError

OPEN_SHARDS = 64  # file handles, and parts of indices, kept; a plan's window is 16 shards by default
INDEX_ROWS = 16_384  # of an index are read at once, 460 kB: a shard may hold millions of images
TAR_BLOCK = 512


class Reader:
    """Random access to the images of one split, from any number of threads.

    Args:
        dataset: as `load_dataset` gives it.
        split: its name, or several joined by "+" to be read as one: the ids of the first, then the second's.

    Raises:
        UserError: no such split, or it is empty, or named twice.
    """

    def __init__(self, dataset: Dataset, split: str):
        self.dataset, self.root, self.split = dataset, dataset.root, split
        self._shards = [shard for name in self._parts(split) for shard in dataset.splits[name].shards]
        self.names = [shard.name for shard in self._shards]
        self.shards = [shard.images for shard in self._shards]
        self.first = np.cumsum([0, *self.shards])  # id of each shard's first sample
        self.images = int(self.first[-1])
        self._index = lru_cache(maxsize=OPEN_SHARDS)(self._load_index)
        self._handles: OrderedDict[int, int] = OrderedDict()
        # Training and evaluation read through one reader, each in a thread of its own: a handle must not
        # be closed, and its number given to another shard, between being looked up and being read.
        self._lock = threading.Lock()

    def _parts(self, split: str) -> list[str]:
        parts = split.split("+")
        for part in parts:
            if part not in self.dataset.splits:
                raise UserError(f"{self.root}: no split '{part}'; it has {', '.join(self.dataset.splits)}")
            if not self.dataset.splits[part].images:
                raise UserError(f"{self.root}: the split '{part}' has no images")
        if len(set(parts)) < len(parts):
            raise UserError(f"{self.root}: '{split}' names a split twice; name each once")
        return parts

    def entries(self, ids: np.ndarray) -> np.ndarray:
        """The index rows of samples (`dataset.INDEX`: offset, size, height, width, label), [n]."""
        shards = self._shard_of(ids)
        parts, places = np.divmod(ids - self.first[shards], INDEX_ROWS)
        rows, held = np.empty(len(ids), INDEX), shards << 32 | parts
        for key in np.unique(held):
            mine = held == key
            rows[mine] = self._index(int(key) >> 32, int(key) & 0xFFFFFFFF)[places[mine]]
        return rows

    def read(self, ids: np.ndarray) -> list[np.ndarray]:
        """The encoded images of samples, each a uint8 array, in the order of `ids`.

        Raises:
            UserError: a shard is gone, cannot be read or ends early.
        """
        shards, entries = self._shard_of(ids), self.entries(ids)
        images: list[np.ndarray] = [np.empty(0, np.uint8)] * len(ids)
        for slot in np.lexsort((entries["offset"], shards)):  # in the order of the disk
            size = int(entries["size"][slot])
            data = self._pread(int(shards[slot]), size, int(entries["offset"][slot]))
            images[slot] = np.frombuffer(data, np.uint8)
        return images

    def describe(self, sample: int) -> str:
        """Where a sample lies, for messages: its member's name, shard and place."""
        shard = int(self._shard_of(np.array([sample]))[0])
        offset = int(self.entries(np.array([sample]))["offset"][0])
        header = self._pread(shard, TAR_BLOCK, offset - TAR_BLOCK)  # a tar member's header precedes it
        name = header[:100].split(b"\0")[0].decode("utf-8", "replace")
        return f"{name} in {self._path(shard)}"

    def close(self) -> None:
        while self._handles:
            os.close(self._handles.popitem()[1])

    def _shard_of(self, ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.first, ids, side="right") - 1

    def _load_index(self, shard: int, part: int) -> np.ndarray:
        """Part number `part` of a shard's index, of `INDEX_ROWS` rows."""
        path, images = self.root / index_name(self.names[shard]), self.shards[shard]
        size = min(INDEX_ROWS, images - part * INDEX_ROWS) * INDEX.itemsize
        try:
            with open(path, "rb") as file:
                read_magic(file)
                shape, _, dtype = read_array_header_1_0(file)
                file.seek(part * INDEX_ROWS * INDEX.itemsize, os.SEEK_CUR)
                data = file.read(size)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: the shard's index cannot be read ({error}); {self._verify()}") from None
        if dtype != INDEX or shape != (images,):
            found, expected = f"{dtype} {shape}", f"{images} rows of {INDEX.names}"
            raise UserError(f"{path}: expected {expected}, found {found}; {self._verify()}")
        if len(data) < size:
            raise UserError(f"{path}: the shard's index ends early; {self._verify()}")
        return np.frombuffer(data, INDEX)

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        try:
            with self._lock:
                if shard in self._handles:
                    self._handles.move_to_end(shard)
                else:
                    self._handles[shard] = os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC)
                    if len(self._handles) > OPEN_SHARDS:
                        os.close(self._handles.popitem(last=False)[1])
                data = os.pread(self._handles[shard], size, offset)
        except OSError as error:
            path = self._path(shard)
            raise UserError(f"{path} cannot be read ({error.strerror}); {self._verify()}") from None
        if len(data) < size:
            raise UserError(f"{self._path(shard)}: ends before byte {offset + size}; {self._verify()}")
        return data

    def _path(self, shard: int) -> Path:
        return tar_path(self.root, self._shards[shard])

    def _verify(self) -> str:
        return f"check with: python -m data_pipelines.shards verify {self.root}"
