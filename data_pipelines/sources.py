"""Images as their publishers give them -> samples, ready to be written as shards.

A source is opened whole, so that a wrong or broken archive is told before anything is written, and is cut
into chunks of a shard's length. A chunk goes to a worker process, which does the decoding and encoding.

Order: the publishers' own where images come mixed over their classes. Folders of classes are sorted by class,
so their images are put in the order of a hash of their names before they are cut: shards are read a few at a
time, and a shard of one class makes batches of one class.
"""

import difflib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from data_pipelines import cifar, folder, stl10, wds
from data_pipelines.errors import UserError
from data_pipelines.images import PNG_LEVEL, Picture, Sample, encode


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

    def samples(self) -> Iterator[Sample]:
        for number, (pixels, label) in enumerate(zip(self.images, self.labels, strict=True), self.first):
            key = f"{self.prefix}_{number:05d}"
            yield Sample(key, key, int(label), partial(_load, pixels))


def _load(pixels: np.ndarray) -> Picture:
    grey = pixels.ndim == 2
    return Picture("png", encode(pixels), pixels[:, :, None].repeat(3, axis=2) if grey else pixels)


@dataclass(frozen=True)
class Source:
    """What there is to write.

    classes: their names by label, empty where nothing is labelled; None for the numbers that turn up.
    splits: {split: part}, a part having a length, chunks(images) and what `shards_write.write_shard` asks
    of a chunk. images_per_shard: unless the user says; 0 where the source is shards. left_out: {"member",
    "why"} of what is none of the images. made_with: the user's options that decide what becomes of the
    images.
    """

    name: str
    classes: list[str] | None
    splits: dict
    images_per_shard: int
    left_out: list[dict] = field(default_factory=list)
    made_with: dict = field(default_factory=dict)


def open_source(name: str, from_: str | Path | None = None, progress: bool = True, **options) -> Source:
    """Opens a source by its name; `from_` is the archive or folder it is read from, where it has one.

    options: test_percent and label, None where not given. Raises UserError for an unknown name, for an option
    that the source does not take, and for whatever is wrong with `from_`.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"source={name}: unknown source; {hint}known: {', '.join(SOURCES)}")
    function, takes = SOURCES[name]
    for key, value in options.items():
        if value is not None and key not in takes:
            raise UserError(f"{key}={value}: source={name} has no use for it; leave {key}= out")
    return function(from_, progress, **{key: options.get(key) for key in takes})


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
    return _cifar(cifar.CIFAR10, "cifar10", from_, progress)


def _cifar100(from_, progress) -> Source:
    """CIFAR-100 (Krizhevsky 2009) with its 100 fine labels; fetched when `from_` is not given."""
    return _cifar(cifar.CIFAR100, "cifar100", from_, progress)


def _cifar(layout: cifar.Layout, name: str, from_, progress) -> Source:
    path = cifar.fetch(layout.url, layout.md5, progress=progress) if from_ is None else Path(from_)
    classes, pixels = cifar.read(path, layout)
    splits = {split: Pixels(split, 0, images, labels) for split, (images, labels) in pixels.items()}
    return Source(name, classes, splits, images_per_shard=5000)


def _stl10(from_, progress) -> Source:
    """STL-10 (Coates, Ng, Lee 2011): train and test of 10 classes, and the unlabelled split."""
    if from_ is None:
        raise UserError(f"from= is missing; {stl10.EXPECTED}")
    classes, splits = stl10.read(Path(from_))
    return Source("stl10", classes, splits, images_per_shard=1000)


def _folder(from_, progress, test_percent) -> Source:
    """Folders of image files, labelled or not."""
    if from_ is None:
        raise UserError("from= is missing; source=folder takes a folder of images, or of folders of them")
    classes, splits, left_out = folder.read(Path(from_), test_percent)
    made_with = _given(**{"from": os.path.abspath(from_)}, test_percent=test_percent)
    return Source("folder", classes, splits, 1000, left_out, made_with)


def _wds(from_, progress, test_percent, label) -> Source:
    """WebDataset tars, indexed where they lie."""
    if from_ is None:
        raise UserError(
            "from= is missing; source=wds takes a folder of tars or a pattern such as 'DIR/*.tar'"
        )
    classes, splits = wds.read(str(from_), test_percent, label)
    made_with = _given(**{"from": os.path.abspath(from_)}, test_percent=test_percent, label=label)
    return Source("wds", classes, splits, images_per_shard=0, made_with=made_with)


def _given(**options) -> dict:
    return {key: value for key, value in options.items() if value is not None}


# Each with the options that it takes.
SOURCES = {
    "digits": (_digits, ()),
    "cifar10": (_cifar10, ()),
    "cifar100": (_cifar100, ()),
    "stl10": (_stl10, ()),
    "folder": (_folder, ("test_percent",)),
    "wds": (_wds, ("test_percent", "label")),
}
