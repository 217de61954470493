"""scikit-learn's handwritten digits."""

from pathlib import Path

import numpy as np

from data_pipelines.common.errors import UserError
from data_pipelines.sources.pixels import Pixels
from data_pipelines.sources.source import Source


def open_digits(from_: str | Path | None, progress: bool) -> Source:
    """scikit-learn's digits: 1,797 real handwritten digits of 8x8 pixels in 17 greys (UCI optdigits, 1998).

    Every fifth image of each class, counted in the published order, is the test split: 1,438 and 359 images.
    """
    if from_ is not None:
        raise UserError(f"from={from_}: source=digits comes with scikit-learn; leave from= out")
    # Imported here, because it takes a second, which other sources do not need.
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
