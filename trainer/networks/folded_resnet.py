"""The folded ResNet of Deep InfoMax (arXiv 1808.06670; layer sizes of rdevon/DIM)."""

from functools import partial

from torch import Tensor, nn

from trainer.networks.batch_norm import normalization
from trainer.networks.encoder import Encoder, Features
from trainer.networks.layers import convolution, dense, fold, patch_grid, refold
from trainer.networks.resnet import Bottleneck, stage


class FoldedResNet(Encoder):
    """Images [n, 3, size, size] -> local map, conv, fc and y: the paper's network to compare with CPC.

    The image is cut into patches of 8 pixels, 4 apart (32 px: 7 x 7). A convolution (3/2/1) and three
    stages of bottlenecks, the second and third of stride 2, bring each patch to 1 x 1 with 16·width channels;
    put together again they are the local map, 1024 x 7 x 7 for the published width of 64. A fully connected
    layer with batch-norm and ReLU follows, then y.

    Batch-norm on the patches is over all patches of a group's images, group·M·M consecutive rows: an image
    never lies in two groups.

    Args:
        depth: 19 (two blocks a stage) or 37 (three, six and three). The paper does not print the 37's blocks:
            these are a reading, the division of three stages that adds up to 37 layers.

    Raises:
        ValueError: the patches do not cover the image.
    """

    PATCH = 8
    BLOCKS = {19: (2, 2, 2), 37: (3, 6, 3)}

    def __init__(self, size: int, depth: int, width: int, fc: int, y: int, group: int, norm: str = "batch"):
        super().__init__()
        side = patch_grid(size, self.PATCH)
        on_patches = partial(normalization, norm, group=group, rows=side**2)
        self.stem = convolution(3, width, 3, 2, 1, on_patches)
        before, stages = width, []
        for number, blocks in enumerate(self.BLOCKS[depth]):
            planes, stride = width * 2**number, 2 if number else 1
            stages.append(stage(Bottleneck, before, planes, blocks, stride, on_patches))
            before = Bottleneck.expansion * planes
        self.stages = nn.Sequential(*stages)
        self.local_channels, self.local_side = before, side
        self.norm = partial(normalization, norm, group=group)
        self.widths = {"conv": before * side**2, "fc": fc, "y": y}
        self.fc = self._fc()
        self.y = nn.Linear(fc, y)

    def _fc(self) -> nn.Sequential:
        return dense(self.widths["conv"], self.widths["fc"], self.norm)

    def forward(self, images: Tensor) -> Features:
        """Returns local [n, C, M, M], the same as conv [n, C·M·M], fc [n, fc] and y [n, y]."""
        local = refold(self.stages(self.stem(fold(images, self.PATCH))), self.local_side)
        conv = local.flatten(1)
        fc = self.fc(conv)
        return {"local": local, "conv": conv, "fc": fc, "y": self.y(fc)}

    def tail(self) -> tuple[nn.Module, int]:
        """Fresh layers of this network from the local map [n, C, M, M] to fc [n, width], and that width."""
        return nn.Sequential(nn.Flatten(), self._fc()), self.widths["fc"]
