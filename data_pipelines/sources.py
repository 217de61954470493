"""Images as their publishers give them -> (key, encoded image, label), ready to be written as shards.

A source is opened whole, so that a wrong or broken archive is told before anything is written, and is cut
into chunks of a shard's length. A chunk goes to a worker process, which does the encoding.

Order: both sources here come mixed over their classes, and keep their order. A source that is sorted by class
(folders of classes) has to permute its images by a fixed seed before it cuts them: shards are read a few at a
time, and a shard of one class makes batches of one class.
"""

import difflib
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines import cifar
from data_pipelines.errors import UserError

# PNG is lossless at any level. At 32 pixels, level 1 is the fastest to write and to decode, and 2 % larger
# than level 9; the tar pads members to 512 bytes anyway.
PNG_LEVEL = 1


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
        """sha256 (hex) of all that decides what is written, to know an already finished shard again."""
        digest = hashlib.sha256(f"{self.prefix} {self.first} {self.images.shape} {PNG_LEVEL}\n".encode())
        digest.update(np.ascontiguousarray(self.images))
        digest.update(np.ascontiguousarray(self.labels))
        return digest.hexdigest()

    def samples(self) -> Iterator[tuple[str, bytes, int]]:
        """Yields (key, PNG bytes, label)."""
        for number, (pixels, label) in enumerate(zip(self.images, self.labels, strict=True), self.first):
            encoded = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(pixels)).save(encoded, "PNG", compress_level=PNG_LEVEL)
            yield f"{self.prefix}_{number:05d}", encoded.getvalue(), int(label)


@dataclass(frozen=True)
class Source:
    """name; class names, by label; {split: Pixels}; how many images a shard holds unless the user says."""

    name: str
    classes: list[str]
    splits: dict[str, Pixels]
    images_per_shard: int


def open_source(name: str, from_: str | Path | None = None, progress: bool = True) -> Source:
    """Opens a source by its name; `from_` is the archive or folder it is read from, where it has one.

    Raises UserError for an unknown name and for whatever is wrong with `from_`.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"source={name}: unknown source; {hint}known: {', '.join(SOURCES)}")
    return SOURCES[name](from_, progress)


def _digits(from_, progress) -> Source:
    """scikit-learn's digits: 1,797 real handwritten digits of 8x8 pixels in 17 greys (UCI optdigits, 1998).

    Every fifth image of each class, counted in the published order, is the test split: 1,438 and 359 images.
    """
    if from_ is not None:
        raise UserError(f"from={from_}: source=digits comes with scikit-learn; leave from= out")
    # Here, because it takes a second that other sources need not pay.
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = ((digits.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    rank_in_class = np.empty_like(labels)
    for label in range(10):
        rank_in_class[labels == label] = np.arange(np.count_nonzero(labels == label))
    splits = {}
    for split, rows in (("train", rank_in_class % 5 != 2), ("test", rank_in_class % 5 == 2)):
        splits[split] = Pixels(split, 0, grey[rows], labels[rows])
    return Source("digits", [str(digit) for digit in range(10)], splits, images_per_shard=500)


def _cifar10(from_, progress) -> Source:
    """CIFAR-10 (Krizhevsky 2009), official python layout and order; fetched when `from_` is not given."""
    path = cifar.fetch(progress=progress) if from_ is None else Path(from_)
    classes, pixels = cifar.read(path)
    splits = {split: Pixels(split, 0, images, labels) for split, (images, labels) in pixels.items()}
    return Source("cifar10", classes, splits, images_per_shard=5000)


SOURCES = {"digits": _digits, "cifar10": _cifar10}
