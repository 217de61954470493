"""Decoded images of one split, as a source passes them to the writer of shards."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from data_pipelines.sources.images import PNG_LEVEL, Picture, Sample, encode


@dataclass(frozen=True)
class Pixels:
    """Decoded images of one split, in order.

    images: uint8 [n, height, width] (grey) or [n, height, width, 3] (RGB); labels: int64 [n]; image i has the
    key f"{prefix}_{first + i:05d}".
    """

    prefix: str
    first: int
    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def chunks(self, size: int) -> "list[Pixels]":
        """Consecutive pieces of `size` images, the last one shorter."""
        return [
            Pixels(self.prefix, self.first + i, self.images[i : i + size], self.labels[i : i + size])
            for i in range(0, len(self), size)
        ]

    def digest(self) -> str:
        """sha256 (hex) of all that decides what is written, to recognise a finished shard."""
        digest = hashlib.sha256(f"{self.prefix} {self.first} {self.images.shape} {PNG_LEVEL}\n".encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def samples(self) -> Iterator[Sample]:
        for number, (pixels, label) in enumerate(zip(self.images, self.labels, strict=True), self.first):
            key = f"{self.prefix}_{number:05d}"
            yield Sample(key, key, int(label), partial(_load, pixels))


def _load(pixels: np.ndarray) -> Picture:
    grey = pixels.ndim == 2
    return Picture("png", encode(pixels), pixels[:, :, None].repeat(3, axis=2) if grey else pixels)
