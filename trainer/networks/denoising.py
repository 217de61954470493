"""What denoisers have in common: how they read a time, and a condition."""

import math

import torch
from torch import Tensor, nn

FASTEST, SLOWEST = 1.0, 1e-4  # radians a unit of time, of the first and the last wave


class TimeEmbedding(nn.Module):
    """Waves of a time, then two layers (arXiv 2006.11239), to which a condition may be added.

    Args:
        waves: numbers that describe a time, half of them sines.
        width: of the embedding.
        condition: numbers of a condition; 0: there is none.
    """

    frequencies: Tensor

    def __init__(self, waves: int, width: int, condition: int = 0):
        super().__init__()
        self.dense = nn.ModuleList([nn.Linear(waves, width), nn.Linear(width, width)])
        self.condition = nn.Linear(condition, width) if condition else None
        half = waves // 2
        steps = torch.arange(half, dtype=torch.float64) / max(1, half - 1)
        frequencies = FASTEST * (steps * math.log(SLOWEST / FASTEST)).exp()
        self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def forward(self, time: Tensor, condition: Tensor | None, conditioned: Tensor | None) -> Tensor:
        """Times [n] -> [n, width].

        Args:
            condition: [n, `condition`] or None.
            conditioned: bool [n], the samples whose condition is read; None: all.
        """
        first, second = self.dense
        angles = time.double()[:, None] * self.frequencies.double()
        dtype = self.frequencies.dtype  # that of the weights, which move with it
        waves = torch.cat([angles.sin(), angles.cos()], 1).to(dtype)
        embedded = second(nn.functional.silu(first(waves)))
        if condition is None or self.condition is None:
            return embedded
        added = self.condition(condition.to(dtype))
        return embedded + (added if conditioned is None else added * conditioned[:, None].to(added.dtype))
