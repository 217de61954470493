"""The AlexNet of Deep InfoMax (arXiv 1808.06670) and its folded form (layer sizes of rdevon/DIM)."""

from functools import partial

import torch
from torch import Tensor, nn

from trainer.networks.batch_norm import normalization
from trainer.networks.encoder import Encoder, Features
from trainer.networks.layers import Norm, convolution, dense, fold, patch_grid, refold
from trainer.networks.pooling import MaxPool

POOLED = (0, 1, 4)  # the convolutions that a pooling (3/2/0) follows
LOCAL = 2  # the convolution whose map is local


def convolutions(before: int, channels: list[int], norm: Norm, first: int = 0) -> list[nn.Module]:
    """AlexNet's convolutions (3/1/1) from number `first` on, the first of them with `before` channels in."""
    layers: list[nn.Module] = []
    for number in range(first, len(channels)):
        layer = convolution(before, channels[number], 3, 1, 1, norm)
        if number in POOLED:
            layer.append(MaxPool(3, 2))
        layers.append(layer)
        before = channels[number]
    return layers


def pooled_side(side: int) -> int:
    """The side of a map after a pooling (3/2/0)."""
    return (side - 1) // 2


class DimAlexNet(Encoder):
    """Images [n, 3, size, size] -> local map, conv, fc and y: the paper's network for 64-px images.

    Five convolutions (3/1/1) with batch-norm and ReLU, the first, second and fifth followed by max-pooling
    (3/2/0); two fully connected layers of `fc` units with batch-norm and ReLU; linear to y. Published for
    STL-10 and Tiny ImageNet: the local map is 384 x 15 x 15, conv 192 x 7 x 7, fc 4,096.

    Raises:
        ValueError: the image is too small to be pooled three times.
    """

    def __init__(self, size: int, channels: list[int], fc: int, y: int, group: int, norm: str = "batch"):
        super().__init__()
        self.local_side = pooled_side(pooled_side(size))
        self.side = pooled_side(self.local_side)
        if self.side < 1:
            raise ValueError(f"size={size}: AlexNet pools three times; at least 15 is needed")
        self.channels, self.local_channels = channels, channels[LOCAL]
        self.norm = partial(normalization, norm, group=group)
        self.widths = {"conv": channels[-1] * self.side**2, "fc": fc, "y": y}
        self.convolutions = nn.ModuleList(convolutions(3, channels, self.norm))
        self.fc = self._fc()
        self.y = nn.Linear(fc, y)

    def _fc(self) -> nn.Sequential:
        conv, fc = self.widths["conv"], self.widths["fc"]
        return nn.Sequential(dense(conv, fc, self.norm), dense(fc, fc, self.norm))

    def forward(self, images: Tensor) -> Features:
        """Returns local [n, C, M, M], conv [n, C'·M'·M'], fc (the second) [n, fc] and y [n, y]."""
        for number, layer in enumerate(self.convolutions):
            images = layer(images)
            if number == LOCAL:
                local = images
        conv = images.flatten(1)
        fc = self.fc(conv)
        return {"local": local, "conv": conv, "fc": fc, "y": self.y(fc)}

    def tail(self) -> tuple[nn.Module, int]:
        """Fresh layers of this network from the local map [n, C, M, M] to fc [n, width], and that width.

        They start with the local map's own convolution again, as in the global critic of rdevon/DIM.
        """
        layers = convolutions(self.local_channels, self.channels, self.norm, LOCAL)
        return nn.Sequential(*layers, nn.Flatten(), self._fc()), self.widths["fc"]


class FoldedAlexNet(Encoder):
    """The AlexNet over overlapping patches, one global vector: the paper's network to compare with CPC.

    The image is cut into patches of 16 pixels, 8 apart (64 px: 7 x 7), which the five convolutions bring
    to 1 x 1; put together again they are the local map, 192 x 7 x 7. A convolution (3/2/0) to twice its
    channels and a fully connected layer follow, then y. Batch-norm before the refolding is over all patches
    of a group's images. Weights on the patches and of fc start as N(0, 0.02).

    The release also drops a tenth of what enters the batch-norms behind the refolding; this network does not.

    Raises:
        ValueError: the patches do not cover the image, or there are fewer than 3 x 3.
    """

    PATCH = 16

    def __init__(self, size: int, channels: list[int], fc: int, y: int, group: int, norm: str = "batch"):
        super().__init__()
        side = patch_grid(size, self.PATCH)
        if side < 3:
            raise ValueError(f"size={size}: the folded AlexNet needs 3 x 3 patches: at least 32 pixels")
        self.local_channels, self.local_side = channels[-1], side
        self.norm = partial(normalization, norm, group=group)
        self.widths = {"conv": channels[-1] * side**2, "fc": fc, "y": y}
        self.convolutions = nn.Sequential(
            *convolutions(3, channels, partial(normalization, norm, group=group, rows=side**2))
        )
        _start_small(self.convolutions)
        self.fc = self._fc()
        self.y = nn.Linear(fc, y)

    def _fc(self) -> nn.Sequential:
        channels, side, fc = 2 * self.local_channels, pooled_side(self.local_side), self.widths["fc"]
        layers = [
            convolution(self.local_channels, channels, 3, 2, 0, self.norm),
            nn.Flatten(),
            dense(channels * side**2, fc, self.norm),
        ]
        _start_small(layers[-1])
        return nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Features:
        """Returns local [n, C, M, M], the same as conv [n, C·M·M], fc [n, fc] and y [n, y]."""
        local = refold(self.convolutions(fold(images, self.PATCH)), self.local_side)
        fc = self.fc(local)
        return {"local": local, "conv": local.flatten(1), "fc": fc, "y": self.y(fc)}

    def tail(self) -> tuple[nn.Module, int]:
        """Fresh layers of this network from the local map [n, C, M, M] to fc [n, width], and that width."""
        return self._fc(), self.widths["fc"]


@torch.no_grad()
def _start_small(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.weight.normal_(0, 0.02)
