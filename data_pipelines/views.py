"""How images become views: the part of a recipe that this package reads, typed and frozen.

Recipes import this module: it needs neither numpy nor torch.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_pipelines.common.section import Fraction, PositiveFloat, Section, key


class Range(Section):
    """An interval [low, high]."""

    low: PositiveFloat = key(..., "the least")
    high: PositiveFloat = key(..., "the most")

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self


class Crop(Section):
    """Random resized crop."""

    scale: Range = key(..., "area, as a share of the image", "1")
    ratio: Range = key(Range(low=3 / 4, high=4 / 3), "width over height, drawn log-uniformly", "1")


class Jitter(Section):
    """Colour jitter: each factor is uniform in [1 - x, 1 + x]."""

    brightness: Fraction = key(0.0, "x of the factor for brightness", "1")
    contrast: Fraction = key(0.0, "x of the factor for contrast", "1")
    saturation: Fraction = key(0.0, "x of the factor for saturation", "1")
    hue: Annotated[float, Field(ge=0, le=0.5)] = key(
        0.0, "x of the angle in [-x, x] that hue is turned by", "turns"
    )
    probability: Fraction = key(1.0, "probability that an image is jittered", "1")


class Blur(Section):
    """Gaussian blur."""

    sigma: Range = key(..., "standard deviation, drawn uniformly, in pixels of the output", "pixels")
    probability: Fraction = key(1.0, "probability that an image is blurred", "1")


class View(Section):
    """One augmented view. An empty section is the image resized and centred, nothing random."""

    crop: Crop | None = None
    jitter: Jitter | None = None
    hue: Literal["yiq", "hsv"] = key(
        "yiq",
        "colour space in which the jitter turns hue: `hsv`, as torchvision and the publications, or `yiq`",
    )
    grayscale: Fraction = key(0.0, "probability that an image becomes grey", "1")
    blur: Blur | None = None
    flip: Fraction = key(0.0, "probability that an image is mirrored, left and right", "1")


class Normalize(Section):
    """(x - mean) / std on pixels in [0, 1], a number a channel. The default gives [-1, 1]."""

    mean: Annotated[list[float], Field(min_length=3, max_length=3)] = key(
        [0.5, 0.5, 0.5], "the mean of red, green and blue", "1"
    )
    std: Annotated[list[PositiveFloat], Field(min_length=3, max_length=3)] = key(
        [0.5, 0.5, 0.5], "the standard deviation of red, green and blue", "1"
    )


@dataclass(frozen=True)
class Shuffle:
    """Which views are key views, and the blocks in which they are permuted (`plan.shuffled`)."""

    views: tuple[int, ...]
    group: int  # images
    groups: int  # a block
