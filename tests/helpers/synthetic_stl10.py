"""A tiny STL-10 in the official layout, for tests."""

from pathlib import Path

import numpy as np

from tests.helpers.tiny_dataset import pictures

CLASSES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
COUNTS = {"train": 12, "test": 5, "unlabeled": 23}


def write_stl10(parent: Path) -> Path:
    """parent/stl10_binary with COUNTS pictures; returns it. Labels: 1, 2, .. 10, 1, ..."""
    folder = parent / "stl10_binary"
    folder.mkdir(parents=True)
    for seed, (name, count) in enumerate(COUNTS.items()):
        columns = pictures(count, 96, 96, seed).transpose(0, 3, 2, 1)  # channel, column, row
        (folder / f"{name}_X.bin").write_bytes(np.ascontiguousarray(columns).tobytes())
    for name in ("train", "test"):
        (folder / f"{name}_y.bin").write_bytes(bytes(i % 10 + 1 for i in range(COUNTS[name])))
    (folder / "class_names.txt").write_text("\n".join(CLASSES) + "\n")
    return folder
