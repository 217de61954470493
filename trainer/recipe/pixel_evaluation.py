"""What pixel diffusion is measured by beside its samples: sections of a recipe that diffuses pixels."""

from typing import Annotated

from pydantic import Field

from data_pipelines.common.section import Count, Positive, Section, key

NoiseShare = Annotated[float, Field(gt=0, lt=1)]


class DenoiserFeatures(Section):
    """Linear probe of the denoiser's inner activations, at the best block and noise (arXiv 2303.09769)."""

    layers: Annotated[list[str], Field(min_length=1)] | None = key(
        None,
        "blocks of the U-Net to choose from, `down.LEVEL.BLOCK`, `mid` and `up.LEVEL.BLOCK`, counted from 0 "
        "at the largest side; null: all",
    )
    noise: Annotated[list[NoiseShare], Field(min_length=1)] = key(
        [0.02, 0.05, 0.1, 0.2, 0.4],
        "shares of noise in an image to choose from: its standard deviation over that of noise plus signal",
        "1",
    )
    images: Annotated[int, Field(ge=10)] = key(
        10_000, "training images that the choice is made on; a tenth of them judges", "images"
    )
    iterations: Positive = key(30, "steps of L-BFGS of each fit that the choice is made by", "iterations")


class Inversion(Section):
    """Test images to noise and back, and a linear probe of the noise (arXiv 2010.02502, section 5.4)."""

    steps: Positive = key(100, "of the way to the noise, and of the way back", "steps")
    images: Positive = key(1000, "test images", "images")
    train_images: Count = key(
        5000, "training images whose noise a linear probe learns from; 0: there is no probe", "images"
    )
