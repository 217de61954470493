"""Data sets of any number of images of each class, in no time."""

import json
from pathlib import Path

from data_pipelines.dataset import Dataset
from data_pipelines.dataset_loading import load_dataset
from tests.helpers.tiny_dataset import pictures, png, write_samples

NAMES = ("cat", "dog", "cow", "pig")


def write_labelled(root: Path, classes: tuple[str, ...] = NAMES, **splits: list[int]) -> Dataset:
    """A data set of source=folder; of each split the images of class 0, 1, …, then those without a label."""
    parts, pngs = {}, [png(pixels) for pixels in pictures(40, 16, 16)]
    for split, counts in splits.items():
        labels = [label for label, count in enumerate(counts) for _ in range(count)]
        labels = [-1 if label == len(classes) else label for label in labels]
        # The names of members count on through a split, so images may repeat.
        parts[split] = [(pngs[number % 40], 16, 16, label) for number, label in enumerate(labels)]
    write_samples(root, parts, 1000)
    file = root / "dataset.json"
    description = json.loads(file.read_text()) | {"source": "folder", "classes": list(classes)}
    file.write_text(json.dumps(description))
    return load_dataset(root)
