"""Gaussians fitted to latents: the controls that a denoiser must beat."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipelines.rows import Table
from trainer.generation.latents import map_moments, position_moments, vector_moments


@dataclass(frozen=True)
class Flat:
    """Rows of several tables, flattened, side by side.

    Attributes:
        tables: each [rows, ...].
    """

    tables: list[Table]

    def __len__(self) -> int:
        return len(self.tables[0])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The rows of these numbers, int64 [n], as [n, all numbers of a row]."""
        return np.concatenate([table[rows].reshape(len(rows), -1) for table in self.tables], axis=1)


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution of latents.

    Attributes:
        mean: [D], float64.
        root: of the covariance: [D, D], or [D] where numbers are independent.
    """

    mean: Tensor
    root: Tensor

    def of_noise(self, noise: Tensor) -> Tensor:
        """Standard normal numbers [n, D] -> samples [n, D], in the dtype and on the device of the noise."""
        mean, root = self.mean.to(noise), self.root.to(noise)
        return mean + (noise * root if root.ndim == 1 else noise @ root.T)


def full_gaussian(tables: Mapping[str, Table]) -> Gaussian:
    """With the mean and the covariance of all numbers of the latents y and w together."""
    mean, covariance = vector_moments(Flat(list(tables.values())))
    values, vectors = torch.linalg.eigh(covariance)
    return Gaussian(mean, vectors * values.clamp(min=0).sqrt())


def channel_gaussian(tables: Mapping[str, Table]) -> Gaussian:
    """With independent numbers: each channel of a map has one mean and variance, each number of a vector."""
    means, roots = [], []
    for table in tables.values():
        mean, std = spreads(table)
        means.append(mean)
        roots.append(std)
    return Gaussian(torch.cat(means), torch.cat(roots))


def spreads(table: Table) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each number of a row, flattened, float64: of a map, its channel's."""
    shape = table[np.arange(1)].shape[1:]
    mean, variance = position_moments(table) if len(shape) == 1 else map_moments(table, "channel")
    return mean.expand(shape).flatten(), variance.sqrt().expand(shape).flatten()
