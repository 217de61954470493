"""Rows of tables in memory, or in a mapped file, as samples of a loader: latents, decoded images."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from data_pipelines.draws import FLIP, uniforms
from data_pipelines.loader import Made, Maker


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
    """Each table is a view; nothing but a mirror is drawn.

    Args:
        tables: arrays [rows, ...] of equal length, also mapped ones: only the rows of a batch are read.
        labels: int64 [rows]; None: there are none, and all are -1.
        seed: of the run.
        flip: probability that a row is mirrored along its last axis, in all views alike.
        device: of the views.
        dtype: of the views.

    Raises:
        ValueError: the tables differ in their rows.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        labels: np.ndarray | None = None,
        *,
        seed: int = 0,
        flip: float = 0.0,
        device: torch.device = torch.device("cpu"),  # noqa: B008
        dtype: torch.dtype = torch.float32,
    ):
        if len({len(table) for table in tables} | ({len(labels)} if labels is not None else set())) != 1:
            raise ValueError(f"tables: rows differ: {[len(table) for table in tables]}")
        self.tables: Sequence[Table] = tables
        self.labels = labels
        self.seed, self.flip, self.device, self.dtype = seed, flip, device, dtype
        self.sources = [0] * len(tables)

    def __call__(self, ids: list[np.ndarray], positions: list[np.ndarray]) -> Made:
        """The rows `ids[0]`, int64 [n], for the places `positions[0]` of the run."""
        rows, place = ids[0], positions[0]
        mirrored = np.zeros(len(rows), bool)
        if self.flip:
            mirrored = uniforms(self.seed, place, 0)[:, FLIP] < self.flip
        views = [self._view(table[rows], mirrored) for table in self.tables]
        labels = np.full(len(rows), -1) if self.labels is None else self.labels[rows]
        return Made(views, ids, torch.from_numpy(labels.astype(np.int64)))

    def _view(self, rows: np.ndarray, mirrored: np.ndarray) -> torch.Tensor:
        view = torch.from_numpy(np.ascontiguousarray(rows)).to(self.device, self.dtype)
        if mirrored.any():
            view[torch.from_numpy(mirrored)] = view[torch.from_numpy(mirrored)].flip(-1)
        return view
