"""Rows of tables in memory, or in a mapped file, as samples of a loader: latents, decoded images."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from data_pipelines.loader import Made, Maker
from data_pipelines.pinned import on_device


class Table(Protocol):
    """Rows of equal shape: an array, a mapped one, or several put together."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The rows of these numbers, int64 [n], as [n, ...]."""


class Stacked:
    """Tables one behind the other, without a copy of them.

    Args:
        tables: arrays [rows, ...] that differ in their rows alone.
    """

    def __init__(self, tables: Sequence[np.ndarray]):
        self.tables = tables
        self.ends = np.cumsum([len(table) for table in tables])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The rows of these numbers, int64 [n], as [n, ...]."""
        of_table = np.searchsorted(self.ends, rows, side="right")
        taken = np.empty((len(rows), *self.tables[0].shape[1:]), self.tables[0].dtype)
        for number, table in enumerate(self.tables):
            here = of_table == number
            taken[here] = table[rows[here] - (self.ends[number] - len(table))]
        return taken


class Joined:
    """Tables [rows, C, ...] side by side: the channels of the first, then those of the next."""

    def __init__(self, tables: Sequence[Table]):
        self.tables = tables

    def __len__(self) -> int:
        return len(self.tables[0])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The rows of these numbers, int64 [n], as [n, ...]."""
        return np.concatenate([table[rows] for table in self.tables], axis=1)


class Rows(Maker):
    """Each table is a view; nothing is drawn, and no row has a label.

    Args:
        tables: of equal length, also mapped ones: only the rows of a batch are read.
        device: of the views.
        dtype: of the views.

    Raises:
        ValueError: the tables differ in their rows.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        *,
        device: torch.device = torch.device("cpu"),  # noqa: B008
        dtype: torch.dtype = torch.float32,
    ):
        if len({len(table) for table in tables}) != 1:
            raise ValueError(f"tables: rows differ: {[len(table) for table in tables]}")
        self.tables, self.device, self.dtype = tables, device, dtype
        self.sources = [0] * len(tables)

    def __call__(self, ids: list[np.ndarray], positions: list[np.ndarray]) -> Made:
        """The rows `ids[0]`, int64 [n], whatever their places."""
        views = [on_device(table[ids[0]], self.device).to(self.dtype) for table in self.tables]
        return Made(views, ids, torch.full((len(ids[0]),), -1))
