"""Rows of a tensor: which of them a rank has."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TensorShard:
    """Rows [offset, offset + len(rows)) of dimension 0 of a tensor of `shape`; a 0-dim tensor is one row."""

    shape: tuple[int, ...]
    offset: int
    rows: torch.Tensor


def row_range(count: int, rank: int, world: int) -> tuple[int, int]:
    """First row and row after the last of those, out of `count`, that fall to `rank` of `world`."""
    return rank * count // world, (rank + 1) * count // world


def row_count(shape) -> int:
    """Rows of a tensor of this shape; a 0-dim tensor is one row."""
    return shape[0] if len(shape) else 1
