"""Noise on what a decoder reads in training, so that it decodes latents well that no image was encoded to."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data_pipelines.noise import Noise
from trainer.networks.encoder import Encoder


@dataclass(frozen=True)
class DecoderNoise:
    """z + sigma · spread · eps with sigma ~ U(0, tau) an image and eps normal, as RAE trains its decoder.

    Zheng et al., arXiv 2510.11690 (src/stage1/rae.py), whose latents are normalised: here the spread, without
    gradient, is the standard deviation of each channel of a map, and of each number of a vector, over a group
    of images. Draws and spread belong to the group, so ranks and micro-batches change nothing.

    tau: the largest sigma, in units of the spread. group: images. channels: of y and of w; a vector has one a
    number.
    """

    tau: float
    group: int
    channels: tuple[int, int]

    @classmethod
    def of(cls, tau: float, group: int, encoder: Encoder) -> "DecoderNoise | None":
        """The noise of an encoder's y and w; None for tau 0: nothing is drawn.

        Raises:
            ValueError: a group of one image, over which a vector has no spread.
        """
        if not tau:
            return None
        if group < 2:
            raise ValueError(
                f"norm={group}: decoder_noise={tau:g} has the spread of a group of images for its unit, and "
                "that needs at least 2; 32 or 64 is usual, or set decoder_noise=0"
            )
        y, w = (encoder.maps.get(name, (encoder.widths[name],))[0] for name in ("y", "w"))
        return cls(tau, group, (y, w))

    def __call__(self, y: Tensor, w: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """y [n, d] and w [n, d'] with noise, n a multiple of the group; at least in float32."""
        generators = noise.groups("decoder noise", self.group, y.device)
        parts = zip(y.split(self.group), w.split(self.group), generators, strict=True)
        noisy = [self._noisy_group(*part) for part in parts]
        return torch.cat([one for one, _ in noisy]), torch.cat([other for _, other in noisy])

    def _noisy_group(self, y: Tensor, w: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(y.dtype, torch.float32)
        drawn: dict[str, Any] = {"generator": generator, "device": y.device, "dtype": dtype}
        sigma = self.tau * torch.rand(len(y), 1, **drawn)
        first, second = (
            rows + sigma * spread(rows, channels).to(dtype) * torch.randn(rows.shape, **drawn)
            for rows, channels in zip((y, w), self.channels, strict=True)
        )
        return first, second


@torch.no_grad()
def spread(rows: Tensor, channels: int) -> Tensor:
    """The standard deviation of each channel of rows [n, width], over rows and places, as [width]."""
    by_channel = rows.to(torch.promote_types(rows.dtype, torch.float32)).unflatten(1, (channels, -1))
    std = by_channel.std((0, 2), correction=0)
    return std.repeat_interleave(by_channel.shape[2])
