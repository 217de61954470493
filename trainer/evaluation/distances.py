"""How far samples are from real images, in the features of an extractor; rows [n, d], in float64.

No number here is comparable with one of another extractor, nor of another number of images. Rows of both sets
lie on one device, any one, and are compared there.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipelines.draws import permutation

CHUNK = 2048  # rows whose distances to all others are in memory at a time


# ---- Fréchet ---------------------------------------------------------------------------------------


@dataclass
class Moments:
    """Mean and covariance of rows, gathered piece by piece without any row being kept.

    Attributes:
        rows: how many.
        mean: [d].
        scatter: sum of the products of deviations from the mean, [d, d].
    """

    rows: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "Moments":
        """Those of rows [n, d], n at least 1."""
        rows = rows.double()
        deviations = rows - (mean := rows.mean(0))
        return cls(len(rows), mean, deviations.T @ deviations)

    def __add__(self, other: "Moments") -> "Moments":
        """Those of both (Chan, Golub and LeVeque, 1983): exact wherever the mean lies."""
        rows = self.rows + other.rows
        apart = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(apart, apart) * (self.rows * other.rows / rows)
        return Moments(rows, self.mean + apart * (other.rows / rows), scatter)

    def covariance(self) -> Tensor:
        """Unbiased, [d, d].

        Raises:
            ValueError: fewer than two rows.
        """
        if self.rows < 2:
            raise ValueError(f"rows={self.rows}: a covariance needs two")
        return self.scatter / (self.rows - 1)


def frechet(one: Moments, two: Moments) -> float:
    """The squared Fréchet distance of two Gaussians (arXiv 1706.08500).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The trace of the root is that of the symmetric root of
    C1^(1/2) C2 C1^(1/2), so that covariances without full rank need no eps and nothing becomes complex.
    """
    first, second = one.covariance(), two.covariance()
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    middle = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    distance = (one.mean - two.mean).square().sum() + first.trace() + second.trace() - 2 * middle
    return max(0.0, distance.item())


# ---- distances without a Gaussian --------------------------------------------------------------------


def kid(one: Tensor, two: Tensor, seed: int, subsets: int = 100, size: int = 1000) -> tuple[float, float]:
    """Kernel distance: mean and standard deviation over random subsets (arXiv 1801.01401).

    Each is the unbiased squared MMD with the kernel (x.y / d + 1)^3, of `size` rows of both or as many as
    there are.
    """
    size = min(size, len(one), len(two))
    values = []
    for subset in range(subsets):
        x, y = (
            _some(rows, permutation(len(rows), seed, f"kid {side}", subset)[:size])
            for side, rows in (("one", one), ("two", two))
        )
        values.append(mmd(x, y))
    spread = torch.tensor(values, dtype=torch.float64)
    return spread.mean().item(), spread.std(correction=0).item()


def _some(rows: Tensor, numbers: np.ndarray) -> Tensor:
    """Rows of these numbers, in float64, where the rows are."""
    return rows[torch.from_numpy(numbers).to(rows.device)].double()


def mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased squared MMD of rows [n, d] and [n, d] with the kernel (x.y / d + 1)^3."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, (within_x, within_y) = len(x), (kernel(rows, rows) for rows in (x, y))
    within = within_x.sum() - within_x.trace() + within_y.sum() - within_y.trace()
    return (within / (n * (n - 1)) - 2 * kernel(x, y).mean()).item()


def sliced_w2(one: Tensor, two: Tensor, seed: int, directions: int = 1000) -> float:
    """The root of the mean squared Wasserstein-2 distance along random directions (arXiv 1902.00434).

    Of the longer set a random part is taken, as many rows as the other has.
    """
    rows = min(len(one), len(two))
    generator = torch.Generator().manual_seed(seed)
    lines = torch.randn(directions, one.shape[1], dtype=torch.float64, generator=generator)
    lines = (lines / lines.norm(dim=1, keepdim=True)).to(one.device)
    parts = [
        _some(part, permutation(len(part), seed, f"sliced {side}")[:rows])
        for side, part in (("one", one), ("two", two))
    ]
    total = 0.0
    for some in lines.split(100):
        x, y = ((part @ some.T).sort(0).values for part in parts)
        total += (x - y).square().mean(0).sum().item()
    return (total / directions) ** 0.5


# ---- neighbours --------------------------------------------------------------------------------------


def radii(rows: Tensor, neighbours: int = 3) -> Tensor:
    """The distance of each row to its k-th nearest other row, [n]."""
    rows = rows.double()
    far = [torch.cdist(some, rows).kthvalue(neighbours + 1, 1).values for some in rows.split(CHUNK)]
    return torch.cat(far)


def covered(rows: Tensor, reference: Tensor, radius: Tensor) -> float:
    """The share of rows that lie in a ball around some reference row."""
    rows, reference = rows.double(), reference.double()
    inside = [(torch.cdist(some, reference) <= radius).any(1).double().sum() for some in rows.split(CHUNK)]
    return torch.stack(inside).sum().item() / len(rows)


def precision_recall(real: Tensor, samples: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """How much of the samples lies among real images, and of real ones among samples (arXiv 1904.06991)."""
    precision = covered(samples, real, radii(real, neighbours))
    return precision, covered(real, samples, radii(samples, neighbours))


def nearest(rows: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's nearest reference row: distances [n], and numbers int64 [n]."""
    reference = reference.double()
    least = [torch.cdist(some, reference).min(1) for some in rows.double().split(CHUNK)]
    return torch.cat([part.values for part in least]), torch.cat([part.indices for part in least])
