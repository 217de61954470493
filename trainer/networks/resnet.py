"""Residual networks (He et al., arXiv 1512.03385) with torchvision's names of parameters and buffers."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainer.networks.batch_norm import normalization
from trainer.networks.encoder import Encoder, Features
from trainer.networks.layers import Norm
from trainer.networks.nvae import NvaeDecoder
from trainer.networks.pooling import MaxPool


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: [n, before, H, W] -> [n, planes, H/stride, W/stride]."""

    expansion = 1

    def __init__(self, before: int, planes: int, stride: int, norm: Norm):
        super().__init__()
        self.conv1 = nn.Conv2d(before, planes, 3, stride, 1, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = norm(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(before, planes, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions beside a shortcut; 4·planes channels leave it."""

    expansion = 4

    def __init__(self, before: int, planes: int, stride: int, norm: Norm):
        super().__init__()
        self.conv1 = nn.Conv2d(before, planes, 1, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = norm(planes)
        self.conv3 = nn.Conv2d(planes, self.expansion * planes, 1, bias=False)
        self.bn3 = norm(self.expansion * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(before, self.expansion * planes, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + self.downsample(x))


Block = type[BasicBlock] | type[Bottleneck]


def shortcut(before: int, after: int, stride: int, norm: Norm) -> nn.Sequential:
    """The identity where the shape stays, else a 1x1 convolution and a norm."""
    if stride == 1 and before == after:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), norm(after))


def stage(block: Block, before: int, planes: int, blocks: int, stride: int, norm: Norm) -> nn.Sequential:
    """`blocks` residual blocks in a row, the first with the stride."""
    after = block.expansion * planes
    rest = [block(after, planes, 1, norm) for _ in range(blocks - 1)]
    return nn.Sequential(block(before, planes, stride, norm), *rest)


class ResNet(Encoder):
    """Images [n, 3, size, size] -> local map, pooled features and y; with `w` a map w too, and z = [y, w].

    Weights of torchvision load but for its classifier `fc`. The 3x3 convolution of a bottleneck has the
    stride, as torchvision's has. Convolutions start as Kaiming normal (fan out).

    Args:
        depth: 18 or 34 (basic blocks), 50 or 101 (bottlenecks).
        stem: "imagenet", a 7x7 convolution of stride 2 and max-pooling; "cifar", a 3x3 one of stride 1.
        width: channels of the stem; stages have 1, 2, 4 and 8 times as many, bottlenecks four times those.
        local: "layer1" to "layer4", the stage whose map is local.
        y: width of a linear layer on the pooled features; None: y is these themselves.
        zero_init_residual: a block's last norm starts at zero weight, so the block as its shortcut.
        w: {channels, halvings, decoder}, w being made of layer1's map by so many 4x4 convolutions of stride 2
            and a 3x3 one, so that contrast, which lives in the stages behind, leaves it alone; `decoder` has
            {width, cell, tower, expansion, doublings, cells}. None: there is neither w nor a decoder.

    Raises:
        ValueError: the sides of w and of the image do not fit; or layer4 would halve a map of 1 x 1 pixel. Of
            its 3x3 weights one would be left, and torch 2.13 returns memory that it has not written as their
            gradients, in bf16 on a CPU that has it.
    """

    DEPTHS: dict[int, tuple[Block, tuple[int, ...]]] = {
        18: (BasicBlock, (2, 2, 2, 2)),
        34: (BasicBlock, (3, 4, 6, 3)),
        50: (Bottleneck, (3, 4, 6, 3)),
        101: (Bottleneck, (3, 4, 23, 3)),
    }

    def __init__(
        self,
        size: int,
        depth: int,
        stem: str,
        width: int,
        local: str,
        y: int | None,
        group: int,
        norm: str = "batch",
        zero_init_residual: bool = False,
        w: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.block, self.blocks = self.DEPTHS[depth]
        self.width, self.zero_init_residual = width, zero_init_residual
        self.norm = partial(normalization, norm, group=group)
        self.maxpool: nn.Module
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
            self.maxpool = MaxPool(3, 2, 1)
            side = _halved(size, times=2)
        else:
            self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
            self.maxpool = nn.Identity()
            side = size
        if _halved(side, times=2) < 2:
            least = 17 if stem == "imagenet" else 5
            raise ValueError(
                f"size={size}: layer4 would halve a map of one pixel; "
                f"with stem={stem} at least {least} is needed"
            )
        _initialise(self.conv1, zero_init_residual)
        self.bn1 = self.norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1, self.layer2, self.layer3, self.layer4 = (self._stage(number) for number in range(4))
        self.local = int(local.removeprefix("layer"))
        self.local_channels, self.local_side = self._channels(self.local), _halved(side, times=self.local - 1)
        pooled = self._channels(4)
        self.widths = {"y": pooled} if y is None else {"pooled": pooled, "y": y}
        self.y = nn.Identity() if y is None else nn.Linear(pooled, y)
        self.to_map: nn.Sequential | None = None
        if w is not None:  # made last: all other weights are drawn as without it
            self.decoder_options = w["decoder"]
            self._add_map(size, 1 if stem == "cifar" else 4, w["channels"], w["halvings"])

    def _add_map(self, size: int, stride: int, channels: int, halvings: int) -> None:
        """The layers from layer1's map, the stem's `stride` smaller than the image, to w, and w's shape.

        Raises:
            ValueError: as the constructor.
        """
        square = stride * 2**halvings
        if size % square:
            raise ValueError(
                f"size={size}: a place of w is a square of {square} x {square} pixels (stem, w.halvings); "
                f"a multiple of {square} is needed"
            )
        width, doublings = self.decoder_options["width"], self.decoder_options["doublings"]
        if square % 2**doublings or width % 2**doublings:
            raise ValueError(
                f"w.decoder.doublings={doublings}: so many double a place of w beyond its {square} x "
                f"{square} pixels, or halve w.decoder.width={width} to a fraction; give fewer"
            )
        self.patch = square // 2**doublings
        layers: list[nn.Module] = []
        before = self._channels(1)
        for _ in range(halvings):
            layers += [
                nn.Conv2d(before, 2 * before, 4, 2, 1, bias=False),
                self.norm(2 * before),
                nn.ReLU(True),
            ]
            before *= 2
        self.to_map = nn.Sequential(*layers, nn.Conv2d(before, channels, 3, 1, 1))
        self.maps = {"w": (channels, size // square, size // square)}
        w, y = channels * (size // square) ** 2, self.widths.pop("y")
        self.widths |= {"z": y + w, "w": w, "y": y}

    def _channels(self, stages: int) -> int:
        """Channels behind so many stages."""
        return self.block.expansion * self.width * 2 ** (stages - 1) if stages else self.width

    def _stage(self, number: int) -> nn.Sequential:
        """A fresh stage; number 0 is layer1."""
        planes, stride = self.width * 2**number, 2 if number else 1
        blocks = stage(self.block, self._channels(number), planes, self.blocks[number], stride, self.norm)
        _initialise(blocks, self.zero_init_residual)
        return blocks

    def forward(self, images: Tensor) -> Features:
        """Returns local [n, C, M, M], pooled [n, 512 or 2048 at width 64] and y [n, y].

        With `w` also w, a map flattened channel by channel, and z = [y, w].
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        pooled = x.mean((2, 3))
        features = {"local": maps[self.local - 1], "pooled": pooled}
        y = self.y(pooled)
        if self.to_map is not None:
            w = self.to_map(maps[0]).flatten(1)
            features |= {"z": torch.cat([y, w], dim=1), "w": w}
        return features | {"y": y}

    def tail(self) -> tuple[nn.Module, int]:
        """Fresh stages behind the local map [n, C, M, M], pooled to [n, width], and that width.

        Behind layer4 there is only the pooling.
        """
        layers = [self._stage(number) for number in range(self.local, 4)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), self._channels(4)

    def decoder(self) -> NvaeDecoder | None:
        """NVAE's cells from w's map, y added at every place; None without w."""
        if self.to_map is None:
            return None
        channels, side, _ = self.maps["w"]
        options = self.decoder_options
        widths = [options["width"] // 2**doubling for doubling in range(options["doublings"] + 1)]
        return NvaeDecoder(
            *(self.widths["y"], channels, side, widths),
            tower=options["tower"],
            cells=options["cells"],
            expansion=options["expansion"],
            patch=self.patch,
            norm=self.norm,
            residual=options["cell"] == "residual",
        )


def _halved(side: int, times: int) -> int:
    """A side after so many layers of stride 2, each of which rounds up."""
    return -(-side // 2**times)


def _initialise(module: nn.Module, zero_init_residual: bool) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual and isinstance(layer, (BasicBlock, Bottleneck)):
            last = layer.bn3 if isinstance(layer, Bottleneck) else layer.bn2
            assert isinstance(last.weight, Tensor)
            nn.init.zeros_(last.weight)
