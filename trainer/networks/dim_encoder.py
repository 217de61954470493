"""The convolutional encoder of Deep InfoMax (arXiv 1808.06670; layer sizes of rdevon/DIM)."""

from itertools import pairwise

from torch import Tensor, nn

from trainer.networks.batch_norm import GroupBatchNorm


class DimEncoder(nn.Module):
    """Images [n, 3, size, size] -> local map, conv, fc and y.

    Each convolution (4/2/1, no bias) halves the map and is followed by batch-norm and ReLU; then a
    fully connected layer with batch-norm and ReLU, then a linear layer to y, with bias and nothing
    behind it. The local map, of which the local objective speaks, is that of the last convolution
    but one: 128 x 8 x 8 for the published 32-px network.

    Raises:
        ValueError: the image cannot be halved that often.
    """

    def __init__(self, size: int, channels: list[int], fc: int, y: int, group: int):
        super().__init__()
        if size % 2 ** len(channels):
            raise ValueError(
                f"data.size={size} cannot be halved {len(channels)} times (encoder.channels={channels}); "
                f"a multiple of {2 ** len(channels)} is needed"
            )
        widths = [3, *channels]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 4, 2, 1, bias=False), GroupBatchNorm(after, group), nn.ReLU()
            )
            for before, after in pairwise(widths)
        )
        side = size // 2 ** len(channels)
        self.local_channels, self.local_side = channels[-2], 2 * side
        self.widths = {"conv": channels[-1] * side * side, "fc": fc, "y": y}
        self.fc = nn.Sequential(
            nn.Linear(self.widths["conv"], fc, bias=False), GroupBatchNorm(fc, group), nn.ReLU()
        )
        self.y = nn.Linear(fc, y)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns local [n, C, M, M], conv [n, C'·M'·M'], fc [n, fc] and y [n, y]."""
        maps = []
        for block in self.blocks:
            images = block(images)
            maps.append(images)
        conv = maps[-1].flatten(1)
        fc = self.fc(conv)
        return {"local": maps[-2], "conv": conv, "fc": fc, "y": self.y(fc)}
