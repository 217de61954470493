"""How images become views: the part of a recipe that this package reads, typed and frozen.

Recipes import this module: it needs neither numpy nor torch.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from data_pipelines.common.section import Fraction, PositiveFloat, Section


class Range(Section):
    """An interval [low, high]."""

    low: PositiveFloat
    high: PositiveFloat

    @model_validator(mode="after")
    def _ordered(self):
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self


class Crop(Section):
    """Random resized crop: area as a share of the image, aspect ratio drawn log-uniformly."""

    scale: Range
    ratio: Range = Range(low=3 / 4, high=4 / 3)


class Jitter(Section):
    """Colour jitter: each factor is uniform in [1 - x, 1 + x], hue in [-x, x] turns."""

    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    probability: Fraction = 1.0


class Blur(Section):
    """Gaussian blur with a standard deviation uniform in `sigma` (pixels of the output)."""

    sigma: Range
    probability: Fraction = 1.0


class View(Section):
    """One augmented view. An empty section is the image resized and centred, nothing random."""

    crop: Crop | None = None
    jitter: Jitter | None = None
    grayscale: Fraction = 0.0
    blur: Blur | None = None
    flip: Fraction = 0.0


class Normalize(Section):
    """(x - mean) / std on pixels in [0, 1], a number a channel. The default gives [-1, 1]."""

    mean: Annotated[list[float], Field(min_length=3, max_length=3)] = [0.5, 0.5, 0.5]
    std: Annotated[list[PositiveFloat], Field(min_length=3, max_length=3)] = [0.5, 0.5, 0.5]


@dataclass(frozen=True)
class Shuffle:
    """Which views are key views, and the blocks in which they are permuted (`plan.shuffled`)."""

    views: tuple[int, ...]
    group: int  # images
    groups: int  # a block
