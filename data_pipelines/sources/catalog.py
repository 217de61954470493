"""The sources by name: images as their publishers distribute them -> samples, ready to be written as shards.

A source is opened whole, so that a wrong or broken archive is reported before anything is written, and is cut
into chunks of a shard's length. A worker process decodes and encodes the images of a chunk.

Order: that of the publishers where images come mixed over their classes. Folders of classes are sorted by
class, so their images are put in the order of a hash of their names before they are cut: shards are read a
few at a time, and a shard of one class makes batches of one class.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from data_pipelines.common.errors import UserError
from data_pipelines.common.suggest import closest, did_you_mean
from data_pipelines.sources import cifar, folder, stl10, wds
from data_pipelines.sources.digits import open_digits
from data_pipelines.sources.pixels import Pixels
from data_pipelines.sources.source import Source

Option: TypeAlias = int | str | None


def open_source(
    name: str, from_: str | Path | None = None, progress: bool = True, **options: Option
) -> Source:
    """Opens a source by its name.

    Args:
        from_: the archive or folder that it is read from, where it has one; `archives.obtain` finds or
            fetches an official one.
        progress: a bar, where there is a terminal.
        options: test_percent and label; None stands for the default.

    Raises:
        UserError: an unknown name, an option that the source does not have, or a mistake in `from_`.
    """
    if name not in SOURCES:
        hint = did_you_mean(closest(name, SOURCES)) or ";"
        raise UserError(f"source={name}: unknown source{hint} known: {', '.join(SOURCES)}")
    opener, keys = SOURCES[name]
    for key, value in options.items():
        if value is not None and key not in keys:
            raise UserError(f"{key}={value}: source={name} has no use for it; leave {key}= out")
    return opener(from_, progress, **{key: options.get(key) for key in keys})


def _cifar10(from_: str | Path | None, progress: bool) -> Source:
    """CIFAR-10 (Krizhevsky 2009), official python layout and order."""
    return _cifar(cifar.CIFAR10, "cifar10", from_, progress)


def _cifar100(from_: str | Path | None, progress: bool) -> Source:
    """CIFAR-100 (Krizhevsky 2009) with its 100 fine labels."""
    return _cifar(cifar.CIFAR100, "cifar100", from_, progress)


def _cifar(layout: cifar.Layout, name: str, from_: str | Path | None, progress: bool) -> Source:
    if from_ is None:
        raise UserError(f"from= is missing; {layout.expected}")
    classes, pixels = cifar.read(Path(from_), layout)
    splits = {split: Pixels(split, 0, images, labels) for split, (images, labels) in pixels.items()}
    return Source(name, classes, splits, images_per_shard=5000)


def _stl10(from_: str | Path | None, progress: bool) -> Source:
    """STL-10 (Coates, Ng, Lee 2011): train and test of 10 classes, and the unlabelled split."""
    if from_ is None:
        raise UserError(f"from= is missing; {stl10.EXPECTED}")
    classes, splits = stl10.read(Path(from_))
    return Source("stl10", classes, splits, images_per_shard=1000)


def _folder(from_: str | Path | None, progress: bool, test_percent: int | None) -> Source:
    """Folders of image files, labelled or not."""
    if from_ is None:
        raise UserError("from= is missing; source=folder takes a folder of images, or of folders of them")
    classes, splits, left_out = folder.read(Path(from_), test_percent)
    made_with = _not_none(**{"from": os.path.abspath(from_)}, test_percent=test_percent)
    return Source("folder", classes, splits, 1000, left_out, made_with)


def _wds(from_: str | Path | None, progress: bool, test_percent: int | None, label: str | None) -> Source:
    """WebDataset tars, indexed where they lie."""
    if from_ is None:
        raise UserError(
            "from= is missing; source=wds takes a folder of tars or a pattern such as 'DIR/*.tar'"
        )
    classes, splits = wds.read(str(from_), test_percent, label)
    made_with = _not_none(**{"from": os.path.abspath(from_)}, test_percent=test_percent, label=label)
    return Source("wds", classes, splits, images_per_shard=0, made_with=made_with)


def _not_none(**options: Option) -> dict[str, Option]:
    return {key: value for key, value in options.items() if value is not None}


# Each name with the function that opens it, and its options.
SOURCES: dict[str, tuple[Callable[..., Source], tuple[str, ...]]] = {
    "digits": (open_digits, ()),
    "cifar10": (_cifar10, ()),
    "cifar100": (_cifar100, ()),
    "stl10": (_stl10, ()),
    "folder": (_folder, ("test_percent",)),
    "wds": (_wds, ("test_percent", "label")),
}
