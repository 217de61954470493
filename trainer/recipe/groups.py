"""The groups of images that statistics and negatives are taken over."""

import math
from typing import Literal

from data_pipelines.common.section import Positive, Section


class Groups(Section):
    """Sizes, in images, of the groups of consecutive positions that statistics are taken over.

    `negatives` (null: as `norm`) are each other's negatives; `global`: all images of the batch, of all ranks.
    """

    norm: Positive
    negatives: Positive | Literal["global"] | None = None

    @property
    def negative_images(self) -> int | None:
        """How many images are each other's negatives; None: all of the batch."""
        size = self.negatives or self.norm
        return None if size == "global" else size

    @property
    def indivisible_images(self) -> int:
        """The images that must stay on one rank: the least number of whole groups of every kind."""
        return math.lcm(self.norm, self.negative_images or 1)
