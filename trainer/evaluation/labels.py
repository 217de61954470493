"""Labels of a split: how many images each class has, and what a person should know about that."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Dataset
from data_pipelines.reader import Reader
from trainer.evaluation.features import SCAN

COUNTED = 2**17  # images of a split whose labels are counted; of a longer one, more where a class lacks some
NAMED = 3  # classes that a line names
LETTERS = 40  # of a class's name in a line
MANY = 1000  # classes from which on their share with images is looked at
FEWEST_SHARE = 0.01  # of many classes that have an image: with fewer, some label is no class
MOST = 0.99  # share of the images in one class beyond which an accuracy says little


@dataclass(frozen=True)
class Labels:
    """Labelled images of a split by class, int64 [classes]; of a long one, those that were counted."""

    split: str
    counts: np.ndarray

    @property
    def images(self) -> int:
        return int(self.counts.sum())


def count_labels(dataset: Dataset, split: str, enough: int) -> Labels:
    """The labels of a split, of a very long one as far as each class has `enough` images.

    Raises:
        UserError: a label is none of the classes, or an index cannot be read.
    """
    classes = len(dataset.classes)
    counts = np.zeros(classes, np.int64)
    with Reader(dataset, split) as reader:
        for start in range(0, reader.images, SCAN):
            stop = min(start + SCAN, reader.images)
            labels = reader.entries(np.arange(start, stop))["label"]
            if labels.max() >= classes:
                raise UserError(
                    f"{dataset.where}: an image of '{split}' has the label {labels.max()}, and there are "
                    f"{classes} classes, 0 to {classes - 1}; make the data set anew"
                )
            counts += np.bincount(labels[labels >= 0], minlength=classes)
            if stop >= COUNTED and counts.min() >= enough:
                break
    return Labels(split, counts)


def few_have_images(train: Labels, test: Labels) -> str | None:
    """Why no probe is trained where nearly all of many classes have no image; None where enough have some.

    A single stray label makes as many classes, each with weights in every probe: memory and time without end.
    """
    classes, used = len(train.counts), np.flatnonzero((train.counts > 0) | (test.counts > 0))
    if classes < MANY or len(used) >= FEWEST_SHARE * classes:
        return None
    return (
        f"{len(used):,} of {classes:,} classes have an image, and a probe has weights for all; the largest "
        f"label is {used[-1]:,}: mend it if it is no class, or count labels from 0 without gaps"
    )


# ---- lines -----------------------------------------------------------------------------------------


def class_name(dataset: Dataset, label: int) -> str:
    """A class for a line on the screen: `cat (class 1)`."""
    name = " ".join(dataset.classes[label].split())
    name = name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"
    return f"{name} (class {label})"


def listed(dataset: Dataset, labels: np.ndarray) -> str:
    names = [class_name(dataset, label) for label in labels[:NAMED].tolist()]
    return ", ".join(names) + (f" and {len(labels) - NAMED:,} more" if len(labels) > NAMED else "")


def counted(dataset: Dataset, labels: np.ndarray, train: Labels) -> str:
    """`cat (class 1) has 3 training images, dog (class 2) has no training image and 7 more classes`."""
    parts = []
    for label in labels[:NAMED].tolist():
        count = int(train.counts[label])
        parts.append(f"{class_name(dataset, label)} has {count or 'no'} training image{'s' * (count > 1)}")
    more = len(labels) - NAMED
    return ", ".join(parts) + (f" and {more:,} more class{'es' * (more > 1)}" if more > 0 else "")


def about_classes(dataset: Dataset, train: Labels, test: Labels) -> Iterator[str]:
    """What accuracies on these labels hide."""
    unseen = np.flatnonzero((train.counts == 0) & (test.counts > 0))
    if len(unseen):
        yield (
            f"'{train.split}' has no image of {listed(dataset, unseen)}, and '{test.split}' has: "
            "every probe misses those"
        )
    empty = np.flatnonzero((train.counts == 0) & (test.counts == 0))
    if len(empty) and not few_have_images(train, test):
        yield (
            f"neither '{train.split}' nor '{test.split}' has an image of {listed(dataset, empty)}: "
            "accuracies are of the other classes"
        )
    single: dict[int, list[str]] = {}
    for labels in (train,) if train.split == test.split else (train, test):
        largest = int(labels.counts.argmax())
        share = labels.counts[largest] / labels.images
        if labels.counts[largest] == labels.images:
            single.setdefault(largest, []).append(f"'{labels.split}'")
        elif share > MOST:
            yield (
                f"{share:.2%} of the labelled images of '{labels.split}' are of one class, "
                f"{class_name(dataset, largest)}: who always guesses it has that accuracy"
            )
    for label, splits in single.items():
        yield (
            f"all labelled images of {' and '.join(splits)} are of one class, {class_name(dataset, label)}: "
            "accuracies say nothing about the encoder"
        )
