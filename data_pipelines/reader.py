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
from numpy.lib.format import read_array

from data_pipelines.dataset import INDEX, Dataset, index_name
from data_pipelines.errors import UserError

OPEN_SHARDS = 64  # file handles kept; a plan's window is 16 shards by default
TAR_BLOCK = 512


class Reader:
    """Random access to the images of one split, from any number of threads.

    Args:
        dataset: as `load_dataset` gives it.
        split: its name.

    Raises:
        UserError: no such split, or it is empty.
    """

    def __init__(self, dataset: Dataset, split: str):
        self.dataset, self.root, self.split = dataset, dataset.root, split
        if split not in dataset.splits:
            raise UserError(f"{self.root}: no split '{split}'; it has {', '.join(dataset.splits)}")
        self.names = [shard.name for shard in dataset.splits[split].shards]
        self.shards = [shard.images for shard in dataset.splits[split].shards]
        self.first = np.cumsum([0, *self.shards])  # id of each shard's first sample
        self.images = int(self.first[-1])
        if not self.images:
            raise UserError(f"{self.root}: the split '{split}' has no images")
        self._index = lru_cache(maxsize=OPEN_SHARDS)(self._load_index)
        self._handles: OrderedDict[int, int] = OrderedDict()
        # Training and evaluation read through one reader, each in a thread of its own: a handle must not
        # be closed, and its number given to another shard, between being looked up and being read.
        self._lock = threading.Lock()

    def entries(self, ids: np.ndarray) -> np.ndarray:
        """The index rows of samples (`dataset.INDEX`: offset, size, height, width, label), [n]."""
        shards = self._shard_of(ids)
        rows = np.empty(len(ids), INDEX)
        for shard in np.unique(shards):
            mine = shards == shard
            rows[mine] = self._index(int(shard))[ids[mine] - self.first[shard]]
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

    def _load_index(self, shard: int) -> np.ndarray:
        path = self.root / index_name(self.names[shard])
        try:
            with open(path, "rb") as file:
                index = read_array(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: the shard's index cannot be read ({error}); {self._verify()}") from None
        if index.dtype != INDEX or index.shape != (self.shards[shard],):
            found, expected = f"{index.dtype} {index.shape}", f"{self.shards[shard]} rows of {INDEX.names}"
            raise UserError(f"{path}: expected {expected}, found {found}; {self._verify()}")
        return index

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
        return self.root / self.names[shard]

    def _verify(self) -> str:
        return f"check with: python -m data_pipelines.shards verify {self.root}"
