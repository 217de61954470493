"""Samples with mean 0 and variance 1 in each number, and the way back; statistics are buffers of a run."""

import torch
from torch import Tensor, nn

LEAST = 1e-12  # of a variance, against the largest one: below it a number does not vary


class Scaling(nn.Module):
    """Numbers less their mean, over their standard deviation.

    Computed in the precision of samples and statistics, whatever autocast says: in bf16 a small component is
    lost in the rounding of large ones.

    Args:
        mean: broadcast over samples [n, ...].
        std: likewise, above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, samples: Tensor) -> Tensor:
        """Samples [n, ...] standardised, of the same shape."""
        with torch.autocast(samples.device.type, enabled=False):
            return self._scaled(samples)

    def inverse(self, x: Tensor) -> Tensor:
        """The way back."""
        with torch.autocast(x.device.type, enabled=False):
            return self._unscaled(x)

    def _scaled(self, samples: Tensor) -> Tensor:
        return (samples - self.mean) / self.std

    def _unscaled(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean


class Components(Scaling):
    """The first principal components of vectors, each with variance 1.

    Args:
        mean: of the vectors [d].
        basis: orthonormal columns [d, c].
        std: of the components [c].
    """

    basis: Tensor

    def __init__(self, mean: Tensor, basis: Tensor, std: Tensor):
        super().__init__(mean, std)
        self.register_buffer("basis", basis)

    def _scaled(self, samples: Tensor) -> Tensor:
        """Vectors [n, d] -> components [n, c]."""
        return (samples - self.mean) @ self.basis / self.std

    def _unscaled(self, x: Tensor) -> Tensor:
        """Components [n, c] -> the vectors [n, d] that have no other components."""
        return (x * self.std) @ self.basis.T + self.mean


def principal_components(mean: Tensor, covariance: Tensor, count: int) -> Components:
    """Those of most variance, of vectors with this mean [d] and covariance [d, d], float64.

    Each column's largest number is positive, so that the signs are no accident.

    Raises:
        ValueError: the vectors vary in fewer directions than `count`.
    """
    variances, vectors = torch.linalg.eigh(covariance)
    variances, vectors = variances.flip(0), vectors.flip(1)
    if (rank := int((variances > LEAST * variances[0]).sum())) < count:
        raise ValueError(f"components={count}: y varies in {rank} directions only; give at most {rank}")
    basis = vectors[:, :count]
    signs = basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    return Components(mean, basis * signs, variances[:count].sqrt())
