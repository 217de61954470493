"""Heads on an encoder: critics and projections.

Critics are networks that score pairs of a representation y and an image, or a location of it.

A critic encodes both sides once (`forward`), then scores all pairs of the encodings (`scores`), so that pairs
may be formed in pieces and across ranks.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from trainer.networks.batch_norm import normalization

LIMIT = 20.0  # of the bounded score: AMDIM's c (arXiv 1906.00910)


class Critic(nn.Module, ABC):
    """Scores pairs of a representation and an image, or a location of it.

    Attributes:
        cost: about how many numbers exist in memory for each score.
    """

    cost: int

    @abstractmethod
    def forward(self, local: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Local map [n, C, M, M] and y [n, d] -> their encodings [n, L, units] and [n, units]; L = 1 for a
        critic of whole images."""

    @abstractmethod
    def scores(self, local: Tensor, y: Tensor) -> Tensor:
        """Encodings of m images [m, L, units] and of R rows [R, units] -> scores [R, m, L]."""


class CriticEncoder(nn.Module):
    """One side of the encode-and-dot critic (arXiv 1808.06670, appendix; rdevon/DIM).

    Map [n, channels, M, M] -> [n, units, M, M]: 1x1 convolution, norm, ReLU, 1x1 convolution,
    beside a linear shortcut that starts as a noisy copy of its input; their sum is normalised over
    the units at each location. A vector is a 1 x 1 map.
    """

    def __init__(self, channels: int, units: int, norm: str, group: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, units, 1, bias=False),
            normalization(norm, units, group),
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


class DotScore(Critic):
    """Scores of encodings by their dot product.

    Args:
        score: "dot" as published; "scaled" by 1/sqrt(units); "tanh": 20 tanh(scaled / 20), bounded as in
            AMDIM (arXiv 1906.00910).
    """

    cost = 4  # the dot product, what bounds it, and what a bound makes of it

    def __init__(self, units: int, score: str):
        super().__init__()
        self.units, self.score = units, score

    def scores(self, local: Tensor, y: Tensor) -> Tensor:
        """Encodings of m images [m, L, units] and of R rows [R, units] -> scores [R, m, L].

        In the encodings' widest precision whatever autocast says: published scores reach the thousands.
        """
        with torch.autocast(local.device.type, enabled=False):
            dtype = next(self.parameters()).dtype
            dot = torch.einsum("iu,jlu->ijl", y.to(dtype), local.to(dtype))
            if self.score == "dot":
                return dot
            scaled = dot / self.units**0.5
            return scaled if self.score == "scaled" else LIMIT * torch.tanh(scaled / LIMIT)


class EncodeAndDot(DotScore):
    """Local features against representations: the dot product of their encodings."""

    def __init__(self, local_channels: int, y: int, units: int, score: str, norm: str, group: int):
        super().__init__(units, score)
        self.local = CriticEncoder(local_channels, units, norm, group)
        self.y = CriticEncoder(y, units, norm, group)

    def forward(self, local: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Local map [n, C, M, M] and y [n, d] -> their encodings [n, L, units] and [n, units]."""
        return self.local(local).flatten(2).transpose(1, 2), self.y(y[:, :, None, None]).flatten(1)


class GlobalEncodeAndDot(DotScore):
    """Whole images against representations, as rdevon/DIM does it.

    The local map goes through fresh layers of the encoder's own kind and a linear layer, y through a linear
    layer; the score is their dot product.
    """

    def __init__(self, tail: nn.Module, width: int, y: int, units: int, score: str):
        super().__init__(units, score)
        self.local = nn.Sequential(tail, nn.Linear(width, units))
        self.y = nn.Linear(y, units)

    def forward(self, local: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Local map [n, C, M, M] and y [n, d] -> their encodings [n, 1, units] and [n, units]."""
        return self.local(local)[:, None], self.y(y)


class Concat(Critic):
    """The concatenate-and-convolve critic: [feature, y] -> units -> units -> 1, ReLU between, no norm.

    On every location it is the paper's critic of the local objective (1x1 convolutions on the map with y
    beside each location), on the flattened map that of the global one (arXiv 1808.06670, appendix).
    The first layer acts on feature and y apart and is added up for each pair: the same numbers, without
    the concatenations.

    Args:
        features: of a location; of the flattened map where `whole`.
    """

    def __init__(self, features: int, y: int, units: int, whole: bool = False):
        super().__init__()
        self.whole, self.cost = whole, units
        both = nn.Linear(features + y, units)  # initialised as the one layer that it stands for
        self.local, self.y = nn.Linear(features, units), nn.Linear(y, units, bias=False)
        with torch.no_grad():
            self.local.weight.copy_(both.weight[:, :features])
            self.local.bias.copy_(both.bias)
            self.y.weight.copy_(both.weight[:, features:])
        self.hidden, self.out = nn.Linear(units, units), nn.Linear(units, 1)

    def forward(self, local: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Local map [n, C, M, M] and y [n, d] -> [n, L, units] and [n, units]; L = 1 where `whole`."""
        features = local.flatten(1)[:, None] if self.whole else local.flatten(2).transpose(1, 2)
        return self.local(features), self.y(y)

    def scores(self, local: Tensor, y: Tensor) -> Tensor:
        """Encodings of m images [m, L, units] and of R rows [R, units] -> scores [R, m, L]."""
        first = torch.relu(local[None] + y[:, None, None])
        return self.out(torch.relu(self.hidden(first))).squeeze(3).to(self.out.weight.dtype)


# ---- projection heads ------------------------------------------------------------------------------


def projection(before: int, units: int | None, width: int) -> nn.Module:
    """The head [n, before] -> [n, width]: two layers of `units` (null: `before`) between, as in MoCo-v2; with
    0 units one linear layer, as in MoCo-v1."""
    if units == 0:
        return nn.Linear(before, width)
    units = units or before
    return nn.Sequential(nn.Linear(before, units), nn.ReLU(), nn.Linear(units, width))
