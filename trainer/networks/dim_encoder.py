"""The convolutional encoder of Deep InfoMax (arXiv 1808.06670; layer sizes of rdevon/DIM)."""

from functools import partial

from torch import Tensor, nn

from trainer.networks.batch_norm import normalization
from trainer.networks.encoder import Encoder, Features
from trainer.networks.layers import convolution, dense


class DimEncoder(Encoder):
    """Images [n, 3, size, size] -> local map, conv, fc and y.

    Each convolution (4/2/1, no bias) halves the map and is followed by batch-norm and ReLU; then a
    fully connected layer with batch-norm and ReLU, then a linear layer to y, with bias and nothing
    behind it. The local map of the objective is that of the last convolution but one: 128 x 8 x 8 for
    the published 32-px network, 256 x 8 x 8 for the 64-px one, whose channels are [64, 128, 256, 512].

    Raises:
        ValueError: the image cannot be halved that often.
    """

    def __init__(self, size: int, channels: list[int], fc: int, y: int, group: int, norm: str = "batch"):
        super().__init__()
        if size % 2 ** len(channels):
            raise ValueError(
                f"size={size} cannot be halved {len(channels)} times (channels={channels}); "
                f"a multiple of {2 ** len(channels)} is needed"
            )
        self.channels = channels
        self.norm = partial(normalization, norm, group=group)
        self.blocks = nn.ModuleList(self._blocks(3, channels))
        side = size // 2 ** len(channels)
        self.local_channels, self.local_side = channels[-2], 2 * side
        self.widths = {"conv": channels[-1] * side * side, "fc": fc, "y": y}
        self.fc = dense(self.widths["conv"], fc, self.norm)
        self.y = nn.Linear(fc, y)

    def _blocks(self, before: int, channels: list[int]) -> list[nn.Module]:
        pairs = zip([before, *channels], channels, strict=False)
        return [convolution(one, other, 4, 2, 1, self.norm) for one, other in pairs]

    def forward(self, images: Tensor) -> Features:
        """Returns local [n, C, M, M], conv [n, C'·M'·M'], fc [n, fc] and y [n, y]."""
        maps = []
        for block in self.blocks:
            images = block(images)
            maps.append(images)
        conv = maps[-1].flatten(1)
        fc = self.fc(conv)
        return {"local": maps[-2], "conv": conv, "fc": fc, "y": self.y(fc)}

    def tail(self) -> tuple[nn.Module, int]:
        """Fresh layers of this network from the local map [n, C, M, M] to fc [n, width], and that width.

        They start with the local map's own convolution again, as in the global critic of rdevon/DIM: 128 to
        128 channels, then 256, then 1,024 units for the 32-px network.

        Raises:
            ValueError: the local map cannot be halved twice more.
        """
        if self.local_side < 4:
            raise ValueError(
                f"channels={self.channels}: the local map is {self.local_side} x {self.local_side}; "
                "to start there again the encoder's layers need 4 x 4: fewer channels or a larger image"
            )
        blocks = self._blocks(self.local_channels, self.channels[-2:])
        width = self.channels[-1] * (self.local_side // 4) ** 2
        fc = dense(width, self.widths["fc"], self.norm)
        return nn.Sequential(*blocks, nn.Flatten(), fc), self.widths["fc"]
