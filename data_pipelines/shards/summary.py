"""What a made data set holds, for the person who made it: classes, labels, and what belongs to no image."""

import numpy as np

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Dataset, index_name
from data_pipelines.sources.clutter import NO_IMAGE, NOT_NAMED_AS_IMAGE
from data_pipelines.sources.splits import TEST_PERCENT

FEW = 10  # names that a line has
PERCENTAGES = range(10, 51, 10)  # of test images, that a line proposes
MISSED = 0.001  # the chance that none of the images becomes test, at which a percentage is large enough


def summary(dataset: Dataset) -> list[str]:
    """A line each: the classes' names, how many images have a label, and what is amiss with either.

    Reads the labels from the indices of a local data set that has classes. Raises UserError
    where an index is damaged.
    """
    if not dataset.classes:
        lines = ["classes: none, no image has a label"]
    else:
        labels = {split: _labels(dataset, split) for split in dataset.splits}
        counts = [f"{np.count_nonzero(part >= 0):,} of {len(part):,} in {s}" for s, part in labels.items()]
        lines = [f"classes: {_few(dataset.classes)}", f"images with a label: {', '.join(counts)}"]
        lines += _classes_without_images(dataset.classes, labels["train"])
    alone = sum(entry["why"] in (NO_IMAGE, NOT_NAMED_AS_IMAGE) for entry in dataset.left_out)
    return [*lines, f"files that belong to no image: {alone:,}"] if alone else lines


def without_test(dataset: Dataset) -> list[str]:
    """A line for a person who made a data set of training images alone; none where there are others."""
    if list(dataset.splits) != ["train"] or dataset.made_with.get("test_percent") == 0:
        return []  # which was asked for
    again = f"; or {way}" if (way := more_test_images(dataset)) else ""
    return [f"no image became test: a run takes data.test=train, the images trained on{again}"]


def more_test_images(dataset: Dataset) -> str:
    """How to make a local data set again so that some of its images become test; '' where no way is known.

    Of folders and tars without splits, a hash of the name chooses test images: of few images perhaps none.
    """
    alone = list(dataset.splits) == ["train"] and dataset.remote is None
    if not alone or dataset.source not in ("folder", "wds") or dataset.splits["train"].images < 2:
        return ""
    made_with, images = dataset.made_with.get("test_percent", TEST_PERCENT), dataset.splits["train"].images
    larger = [percent for percent in PERCENTAGES if percent > made_with]
    if not larger:
        return ""
    percent = next((p for p in larger if (1 - p / 100) ** images < MISSED), larger[-1])
    return f"remove the folder {dataset.where} and make it again with test_percent={percent}"


def _labels(dataset: Dataset, split: str) -> np.ndarray:
    """The labels of a split's images, int64 [images]; -1: none."""
    parts = []
    for shard in dataset.splits[split].shards:
        path = dataset.root / index_name(shard.name)
        try:
            parts.append(np.load(path, allow_pickle=False)["label"])
        except Exception as error:  # numpy parses a damaged header as Python, which raises nearly anything
            why = " ".join(str(error).split())
            raise UserError(
                f"{path} cannot be read as an index ({why}); remove it and make it again"
            ) from None
    return np.concatenate(parts)


def _classes_without_images(classes: tuple[str, ...], labels: np.ndarray) -> list[str]:
    missing = np.setdiff1d(np.arange(len(classes)), labels)
    if not len(missing):
        return []
    names = [classes[label] for label in missing]
    line = f"classes without an image in train: {len(names):,} of {len(classes):,}: {_few(names)}"
    known = labels[labels >= 0]
    if missing[0] == 0 and classes[0] == "0" and len(known):
        line += f"; labels count from 0, and these begin at {known.min()}"
    return [line]


def _few(names: tuple[str, ...] | list[str]) -> str:
    """The first names; one that would break the line is quoted."""
    shown = [name if name.isprintable() else repr(name) for name in names[:FEW]]
    more = f", and {len(names) - FEW:,} more" if len(names) > FEW else ""
    return ", ".join(shown) + more
