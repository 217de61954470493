"""Rows of a tensor: which of them a rank has, and modules of which each rank keeps its own rows."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class TensorShard:
    """Rows [offset, offset + len(rows)) of dimension 0 of a tensor of `shape`; a 0-dim tensor is one row."""

    shape: tuple[int, ...]
    offset: int
    rows: torch.Tensor


class ShardedModule(nn.Module, ABC):
    """A module with tensors that are sharded over the ranks, apart from its parameters and buffers.

    Engines neither broadcast nor average nor cut such a tensor; no rank has all of it. Checkpoints save it by
    `sharded_state_dict` and cut it anew for another number of ranks.
    """

    @abstractmethod
    def sharded_state_dict(self) -> dict[str, TensorShard]:
        """This rank's rows of each sharded tensor [rows of all ranks, ...], by name.

        The rows of all ranks together cover every tensor exactly once.
        """

    @abstractmethod
    def load_sharded_state_dict(self, rows: Mapping[str, torch.Tensor]) -> None:
        """Restores this rank's rows of each tensor [rows of this rank, ...]: those that `row_range` names.

        Raises:
            ValueError: a tensor has another shape.
        """


def row_range(count: int, rank: int, world: int) -> tuple[int, int]:
    """First row and row after the last of those, out of `count`, that fall to `rank` of `world`."""
    return rank * count // world, (rank + 1) * count // world


def row_count(shape: Sequence[int]) -> int:
    """Rows of a tensor of this shape; a 0-dim tensor is one row."""
    return shape[0] if len(shape) else 1
