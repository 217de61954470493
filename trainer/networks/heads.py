"""Critics: networks that score pairs of a local feature and a representation."""

import torch
from torch import Tensor, nn

from trainer.networks.batch_norm import GroupBatchNorm


class CriticEncoder(nn.Module):
    """One side of the encode-and-dot critic (arXiv 1808.06670, appendix; rdevon/DIM).

    Map [n, channels, M, M] -> [n, units, M, M]: 1x1 convolution, batch-norm, ReLU, 1x1 convolution,
    beside a linear shortcut that starts as a noisy copy of its input; their sum is normalised over
    the units at each location. A vector is a 1 x 1 map.
    """

    def __init__(self, channels: int, units: int, group: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, units, 1, bias=False),
            GroupBatchNorm(units, group),
            nn.ReLU(),
            nn.Conv2d(units, units, 1),
        )
        self.shortcut = nn.Conv2d(channels, units, 1, bias=False)
        with torch.no_grad():
            self.shortcut.weight.uniform_(-0.01, 0.01)
            same = torch.arange(min(channels, units))
            self.shortcut.weight[same, same] = 1.0
        self.norm = nn.LayerNorm(units)

    def forward(self, x: Tensor) -> Tensor:
        both = self.body(x) + self.shortcut(x)
        return self.norm(both.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class EncodeAndDot(nn.Module):
    """Scores of local features against representations: the dot product of their encodings.

    Args:
        score: "dot" as published; "scaled" by 1/sqrt(units); "tanh": 20 tanh(scaled / 20), bounded as in
            AMDIM (arXiv 1906.00910).
    """

    LIMIT = 20.0

    def __init__(self, local_channels: int, y: int, units: int, score: str, group: int):
        super().__init__()
        self.units, self.score = units, score
        self.local = CriticEncoder(local_channels, units, group)
        self.y = CriticEncoder(y, units, group)

    def forward(self, local: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Local map [n, C, M, M] and y [n, d] -> their encodings [n, L, units] and [n, units]."""
        return self.local(local).flatten(2).transpose(1, 2), self.y(y[:, :, None, None]).flatten(1)

    def scores(self, local: Tensor, y: Tensor) -> Tensor:
        """Encodings of m images [m, L, units], [m, units] -> scores [m, m, L]: (y of i, image j, location).

        In the parameters' precision whatever autocast says: published scores reach the thousands.
        """
        with torch.autocast(local.device.type, enabled=False):
            dtype = self.y.shortcut.weight.dtype
            dot = torch.einsum("iu,jlu->ijl", y.to(dtype), local.to(dtype))
            if self.score == "dot":
                return dot
            scaled = dot / self.units**0.5
            return scaled if self.score == "scaled" else self.LIMIT * torch.tanh(scaled / self.LIMIT)
