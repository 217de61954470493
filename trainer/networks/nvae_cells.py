"""Residual cells of NVAE (Vahdat and Kautz, arXiv 2007.03898), as jiamings/d2c has them in an autoencoder."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.layers import Norm
from trainer.networks.upsampling import upsample_bilinear

RESIDUAL = 0.1  # weight of a cell's body beside its shortcut


class WeightNormConv2d(nn.Conv2d):
    """A convolution whose filters are e^log_norm · v / (|v| + 1e-5): `weight` holds the v of each filter."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.log_norm = nn.Parameter((self.weight.detach().flatten(1).norm(dim=1) + 1e-2).log())

    def forward(self, x: Tensor) -> Tensor:
        scale = self.log_norm.exp() / (self.weight.flatten(1).norm(dim=1) + 1e-5)
        return self._conv_forward(x, self.weight * scale[:, None, None, None], self.bias)


class SqueezeExcitation(nn.Module):
    """Scales each channel of [n, channels, H, W] by a number in (0, 1) that all channels' means decide."""

    def __init__(self, channels: int):
        super().__init__()
        units = max(channels // 16, 4)
        self.layers = nn.Sequential(
            nn.Linear(channels, units), nn.ReLU(), nn.Linear(units, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        means = F.adaptive_avg_pool2d(x, 1).flatten(1)  # on CPU several times as fast as mean((2, 3))
        return x * self.layers(means)[:, :, None, None]


class ResidualCell(nn.Module):
    """The encoder's cell, twice norm, Swish, 3x3 convolution: [n, before, H, W] -> [n, after, H', W'].

    With `down` sides are halved, by the first convolution and by a shortcut that sees every pixel; without,
    channels stay and the shortcut is the identity.
    """

    def __init__(self, before: int, after: int, norm: Norm, down: bool = False):
        super().__init__()
        self.shortcut = HalvingShortcut(before, after) if down else nn.Identity()
        self.body = nn.Sequential(
            norm(before),
            nn.SiLU(),
            WeightNormConv2d(before, after, 3, 2 if down else 1, 1),
            norm(after),
            nn.SiLU(),
            WeightNormConv2d(after, after, 3, 1, 1),
            SqueezeExcitation(after),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + RESIDUAL * self.body(x)


class HalvingShortcut(nn.Module):
    """Swish, then four 1x1 convolutions, one for each of the four pixels of a 2x2 square.

    Raises:
        ValueError: `after` is less than a channel for each of them.
    """

    OFFSETS = ((0, 0), (0, 1), (1, 0), (1, 1))

    def __init__(self, before: int, after: int):
        super().__init__()
        if after < len(self.OFFSETS):  # a halving doubles channels, so it is the stem that has 1
            raise ValueError(
                f"width={before}: a halving would make {after} channels of a 2 x 2 square of pixels, "
                "at least one a pixel is needed; give width=2 or more"
            )
        quarter = after // 4
        widths = (quarter, quarter, quarter, after - 3 * quarter)
        self.convolutions = nn.ModuleList(nn.Conv2d(before, width, 1) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(x)
        # Sliced with the stride, not convolved with it: there oneDNN's backward pass writes over its memory.
        parts = zip(self.convolutions, self.OFFSETS, strict=True)
        return torch.cat([conv(x[:, :, row::2, column::2]) for conv, (row, column) in parts], dim=1)


class InvertedCell(nn.Module):
    """The decoder's cell, 1x1 expansion, 5x5 depthwise, 1x1: [n, before, H, W] -> [n, after, H', W'].

    With `up` sides are doubled, by nearest neighbours in the body and bilinearly in the shortcut.
    """

    def __init__(self, before: int, after: int, expansion: int, norm: Norm, up: bool = False):
        super().__init__()
        self.up, wide = up, before * expansion
        self.shortcut = nn.Conv2d(before, after, 1) if up else nn.Identity()
        self.body = nn.Sequential(
            norm(before),
            nn.Conv2d(before, wide, 1, bias=False),
            norm(wide),
            nn.SiLU(),
            nn.Conv2d(wide, wide, 5, 1, 2, groups=wide, bias=False),
            norm(wide),
            nn.SiLU(),
            nn.Conv2d(wide, after, 1, bias=False),
            norm(after),
            SqueezeExcitation(after),
        )

    def forward(self, x: Tensor) -> Tensor:
        body, shortcut = x, x
        if self.up:
            body = F.interpolate(x, scale_factor=2.0, mode="nearest")
            shortcut = upsample_bilinear(x)
        return self.shortcut(shortcut) + RESIDUAL * self.body(body)
