"""Tasks beside Deep InfoMax's bounds: coordinates of locations, occlusion, labels where there are some."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.batch_norm import normalization
from trainer.recipe.objectives import Supervised


class Coordinates(nn.Module):
    """Reads from a local feature and y where on the map the feature was taken.

    At each location [feature, y] goes through a residual 1x1 network to 2 M logits, of row and column. The
    task and its loss are those of rdevon/DIM; the network is ours: two layers beside the identity, no norm.
    """

    def __init__(self, local_channels: int, local_side: int, y: int):
        super().__init__()
        width = local_channels + y
        self.side = local_side
        self.body = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1))
        self.out = nn.Conv2d(width, 2 * local_side, 1)

    def forward(self, local: Tensor, y: Tensor) -> Tensor:
        """Local map [n, C, M, M] and y [n, d] -> the mean over images and locations of the cross-entropies of
        row and column, added; 2 log M for a network that knows nothing."""
        n, _, side, _ = local.shape
        tiled = y[:, :, None, None].expand(-1, -1, side, side)
        x = torch.cat([local, tiled.to(local.dtype)], dim=1)
        rows, columns = self.out(F.relu(x + self.body(x))).split(side, dim=1)
        place = torch.arange(side, device=local.device)
        row = place[:, None].expand(n, side, side)
        column = place[None, :].expand(n, side, side)
        dtype = self.out.weight.dtype
        return F.cross_entropy(rows.to(dtype), row) + F.cross_entropy(columns.to(dtype), column)


def occluded(images: Tensor, share: float, generators: list[torch.Generator]) -> Tensor:
    """Images [n, C, H, W] with a square of `share` of their side hidden, at a random place an image.

    Hidden pixels are 0, the middle of the range that images are normalised to.

    Args:
        generators: one a group of n / len(generators) consecutive images.
    """
    height, width = images.shape[2:]
    side = round(share * min(height, width))
    group = len(images) // len(generators)
    draws = torch.cat([torch.rand(group, 2, generator=g, device=images.device) for g in generators])
    top, left = (draws[:, :1] * (height - side + 1)).long(), (draws[:, 1:] * (width - side + 1)).long()
    rows = torch.arange(height, device=images.device) - top
    columns = torch.arange(width, device=images.device) - left
    hidden = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None]
    return images.masked_fill(hidden[:, None], 0.0)


class Classifier(nn.Module):
    """The paper's classifier on conv features, whose gradient also moves the encoder (semi-supervised)."""

    def __init__(self, inputs: int, options: Supervised, norm: str, group: int):
        super().__init__()
        self.dropout = options.dropout
        self.first = nn.Linear(inputs, options.units)
        self.norm = normalization(norm, options.units, group)
        self.last = nn.Linear(options.units, options.classes)

    def forward(self, x: Tensor, label: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Features [n, inputs] and labels [n], -1 where there is none -> the mean over *all* n images of the
        cross-entropy of the labelled ones.

        A mean over the labelled ones of a part of a batch would depend on how the batch is parted.

        Args:
            generators: of the dropout, one a group of consecutive images.
        """
        hidden = self.first(x)
        if self.training:
            rows = len(x) // len(generators)
            samples = [torch.rand(rows, hidden.shape[1], generator=g, device=x.device) for g in generators]
            hidden = hidden * (torch.cat(samples) >= self.dropout) / (1 - self.dropout)
        logits = self.last(F.relu(self.norm(hidden)))
        logits = logits.to(self.last.weight.dtype)
        return F.cross_entropy(logits, label, ignore_index=-1, reduction="sum") / len(x)
