"""The groups of images that statistics and negatives are taken over."""

import math
from typing import Literal

from data_pipelines.common.section import Positive, Section, key


class Groups(Section):
    """Groups of consecutive images of the global batch that statistics are taken over, whatever the ranks."""

    norm: Positive = key(..., "images that batch-norm's statistics are taken over", "images")
    negatives: Positive | Literal["global"] | None = key(
        None,
        "images that are each other's negatives; null: as `norm`; `global`: all of the batch, of all ranks",
        "images",
    )

    @property
    def negative_images(self) -> int | None:
        """How many images are each other's negatives; None: all of the batch."""
        size = self.negatives or self.norm
        return None if size == "global" else size

    @property
    def indivisible_images(self) -> int:
        """The images that must stay on one rank: the least number of whole groups of every kind."""
        return math.lcm(self.norm, self.negative_images or 1)
