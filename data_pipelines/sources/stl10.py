"""Reads STL-10 (Coates, Ng, Lee 2011) in its official binary layout, image by image.

https://cs.stanford.edu/~acoates/stl10/: stl10_binary/ holds train_X.bin and test_X.bin, 5,000 and 8,000
images, train_y.bin and test_y.bin, their labels 1..10 a byte each, unlabeled_X.bin, 100,000 images without
labels, and class_names.txt. An image is 3 x 96 x 96 bytes, channel by channel and, in each, column by
column.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_pipelines.common.errors import UserError
from data_pipelines.sources.images import Picture, Sample, encode

FOLDER = "stl10_binary"
EXPECTED = f"from= takes {FOLDER}.tar.gz, its unpacked folder {FOLDER}, or the folder above that one"
FILES = {"train": "train", "test": "test", "unlabelled": "unlabeled"}
MEMBERS = ("class_names.txt", "train_y.bin", "test_y.bin", *(f"{stem}_X.bin" for stem in FILES.values()))
PUBLISHED = {"train": 5000, "test": 8000, "unlabelled": 100_000}  # images
SIDE = 96
IMAGE = 3 * SIDE * SIDE  # bytes


@dataclass(frozen=True)
class Slice:
    """Images of one file, from number `first` on, with their labels (None: unlabelled)."""

    path: Path
    prefix: str
    first: int
    labels: list[int | None]

    def __len__(self) -> int:
        return len(self.labels)

    def chunks(self, size: int) -> "list[Slice]":
        """Consecutive pieces of `size` images, the last one shorter."""
        return [
            Slice(self.path, self.prefix, self.first + i, self.labels[i : i + size])
            for i in range(0, len(self), size)
        ]

    def digest(self) -> str:
        """sha256 (hex) of all that decides what is written, to recognise a finished shard."""
        digest = hashlib.sha256(f"{self.prefix} {self.first} {self.labels}\n".encode())
        with open(self.path, "rb") as file:
            file.seek(self.first * IMAGE)
            for _ in self.labels:
                digest.update(file.read(IMAGE))
        return digest.hexdigest()

    def samples(self) -> Iterator[Sample]:
        with open(self.path, "rb") as file:
            file.seek(self.first * IMAGE)
            for number, label in enumerate(self.labels, self.first):
                pixels = np.frombuffer(file.read(IMAGE), np.uint8).reshape(3, SIDE, SIDE).transpose(2, 1, 0)
                key = f"{self.prefix}_{number:06d}"
                yield Sample(key, key, label, partial(_load, pixels))


def _load(pixels: np.ndarray) -> Picture:
    return Picture("png", encode(pixels), pixels)


def read(path: Path) -> tuple[list[str], dict[str, Slice]]:
    """The class names and the slices train, test and unlabelled; no pixel is read yet.

    Raises UserError when a file is missing or has another length than its images take.
    """
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    try:
        classes = (folder / "class_names.txt").read_text("utf-8", "replace").split()
        splits = {}
        for split, stem in FILES.items():
            file = folder / f"{stem}_X.bin"
            count, rest = divmod(file.stat().st_size, IMAGE)
            if rest or not count:
                size = file.stat().st_size
                raise UserError(f"{file} has {size:,} bytes, expected a multiple of {IMAGE:,}: is it whole?")
            labels: list[int | None] = [None] * count
            if split != "unlabelled":
                labels[:] = _labels(folder / f"{stem}_y.bin", count)
            splits[split] = Slice(file, split, 0, labels)
        unlabelled, published = len(splits["unlabelled"]), PUBLISHED["unlabelled"]
        if all(len(splits[name]) == PUBLISHED[name] for name in ("train", "test")) and unlabelled < published:
            file = splits["unlabelled"].path
            raise UserError(f"{file} has {unlabelled:,} images, expected {published:,}: is it whole?")
    except OSError as error:
        why = f"{error.filename} cannot be read ({error.strerror})"
        raise UserError(f"from={path}: {why}; {EXPECTED}") from None
    return classes, splits


def _labels(path: Path, count: int) -> list[int]:
    """The labels of a file, which count from 1, counted from 0."""
    if path.stat().st_size != count:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, expected {count:,}, one a label")
    return [label - 1 for label in path.read_bytes()]
