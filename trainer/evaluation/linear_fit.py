"""A regularised linear classifier of standardised features: its objective, and coordinates that suit it.

The features of an image are strongly correlated, and L-BFGS takes thousands of iterations on them. So it
works in coordinates in which they are hardly correlated, those of a Cholesky factor of their covariance: on
pixels of CIFAR-10 some 50 iterations are enough. What is minimised stays the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.evaluation.lbfgs import Point

PASS = 4096  # rows of features at work at a time: few, long products
WIDEST = 8192  # features beyond which the covariance, of that many squared, takes too long
SAMPLED = 4  # rows for each feature that curvature is estimated from
FAR = 30.0  # standard deviations; a mean further from 0 is subtracted first, since products would lose digits
# Outputs [n, C] of the rows in a slice -> their summed loss [], and its gradient [n, E] by the outputs. E is
# C, or a multiple of it where several sums of rows are wanted.
Loss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LinearFit:
    """A fitted linear classifier: `weight` [C, d] and `bias` [C] of raw features, and how the fit ended."""

    weight: Tensor
    bias: Tensor
    converged: bool
    iterations: int
    objective: float
    l2: float

    def outputs(self, x: Tensor) -> Tensor:
        """Raw features [n, d] -> one output a class, [n, C]."""
        return torch.addmm(self.bias, x, self.weight.T)

    def ending(self) -> dict[str, float]:
        """How the fit ended, for results.json; `converged` is 1 or 0."""
        return {
            "converged": float(self.converged),
            "iterations": float(self.iterations),
            "objective": self.objective,
        }


@dataclass(frozen=True)
class Standardised:
    """Features x [N, d] read as (x - mean) · scale, without a copy of them; mean and scale are [d]."""

    x: Tensor
    mean: Tensor
    scale: Tensor

    @property
    def far(self) -> bool:
        """Whether some mean is so far from 0 that it is subtracted from the rows before the product."""
        return bool((self.mean.abs() * self.scale > FAR).any())

    def for_raw(self, solution: Tensor, far: bool = False) -> tuple[Tensor, Tensor]:
        """Weights and bias [C, d + 1] of standardised features -> weight [C, d], bias [C] of x.

        W·((x - mean)·scale) = (W·scale)·x - (W·scale)·mean. `far`: of x - mean.
        """
        weight, bias = solution[:, :-1] * self.scale.double(), solution[:, -1]
        shifted = bias if far else bias - weight @ self.mean.double()
        return weight.to(self.x.dtype), shifted.to(self.x.dtype)

    def reduce(self, solution: Tensor, loss: Loss) -> tuple[float, Tensor]:
        """The mean loss of weights and bias [C, d + 1], and its gradient [E, d + 1] by them, float64."""
        far, count, total = self.far, len(self.x), 0.0
        weight, bias = self.for_raw(solution, far)
        slope = None
        for start in range(0, count, PASS):
            part = slice(start, min(start + PASS, count))
            rows = self.x[part] - self.mean if far else self.x[part]
            part_loss, error = loss(torch.addmm(bias, rows, weight.T), part)
            total += part_loss.item()
            if slope is None:
                slope = solution.new_zeros(error.shape[1], solution.shape[1])
            slope[:, :-1] += error.T @ rows
            slope[:, -1] += error.sum(0, dtype=torch.float64)
        assert slope is not None  # there are rows
        if not far:
            slope[:, :-1] -= slope[:, -1:] * self.mean.double()
        slope[:, :-1] *= self.scale.double()
        return total / count, slope / count

    def curvature(self, second: float) -> Tensor | None:
        """About the second derivatives [d, d] of the loss by a class's weights; None beyond WIDEST features.

        They are `second`, the mean second derivative by an output, times the covariance of evenly spaced
        rows, SAMPLED for each feature: fewer would say that the loss is flat in some directions.
        """
        width = self.x.shape[1]
        if width > WIDEST:
            return None
        rows = self.x[:: max(1, len(self.x) // max(SAMPLED * width, 2 * PASS))]
        hessian = self.x.new_zeros(width, width)
        for part in rows.split(PASS):
            centred = (part - self.mean) * self.scale
            hessian.addmm_(centred.T, centred)
        return hessian * (second / len(rows))


class Coordinates:
    """Coordinates of weights W [C, d] and bias [C] in which the objective curves about equally everywhere.

    Args:
        curvature: that of `Standardised.curvature`; None: the coordinates are W and the bias.
        l2: of the objective.
    """

    def __init__(self, curvature: Tensor | None, l2: float):
        self.root = None
        if curvature is None:
            return
        one = torch.eye(len(curvature)).to(curvature)
        ridge, failed = max(l2, 1e-7 * curvature.trace().item(), 1e-12), True
        while failed:  # rounding may leave eigenvalues just below 0
            factor, info = torch.linalg.cholesky_ex(curvature + ridge * one)
            failed, ridge = bool(info), 10 * ridge
        self.root = torch.linalg.solve_triangular(factor, one, upper=False)

    def weights(self, place: Tensor) -> Tensor:
        """[C, d + 1] -> W and, last, the bias."""
        return self._apply(place, self.root)

    def gradient(self, slope: Tensor) -> Tensor:
        """The gradient [C, d + 1] by W and the bias -> that by the coordinates."""
        return self._apply(slope, None if self.root is None else self.root.T)

    def _apply(self, rows: Tensor, matrix: Tensor | None) -> Tensor:
        first = rows[:, :-1] if matrix is None else (rows[:, :-1].to(matrix) @ matrix).to(rows)
        return torch.cat([first, rows[:, -1:]], dim=1)


def evaluator(
    features: Standardised, coordinates: Coordinates, loss: Loss, l2: float
) -> Callable[[Tensor], Point]:
    """The mean loss + l2/2 · ||W||² of coordinates [C, d + 1]; `norm`: of the gradient by W and bias."""

    def evaluate(place: Tensor) -> Point:
        solution = coordinates.weights(place)
        value, slope = features.reduce(solution, loss)
        value += l2 / 2 * solution[:, :-1].square().sum().item()
        slope[:, :-1] += l2 * solution[:, :-1]
        return Point(place, value, coordinates.gradient(slope), slope.norm().item())

    return evaluate
