"""Multinomial logistic regression to the minimum: mean cross-entropy + l2/2 · ||W||², the bias free.

It has converged where the norm of the gradient by standardised weights and bias is at most PRECISION · sqrt(2
· l2 · objective). The objective is l2-strongly convex in the weights, so it is then above the least by at
most PRECISION² = 1e-5 of itself. Where rounding or l2 = 0 makes that rule too strict, LEAST_NORM holds.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from trainer.evaluation.lbfgs import Point, minimise
from trainer.evaluation.linear_fit import Coordinates, LinearFit, Standardised, evaluator

PRECISION = 3e-3
LEAST_NORM = 1e-7


def has_converged(point: Point, l2: float) -> bool:
    """The rule that the module states."""
    return point.norm <= max(PRECISION * math.sqrt(2 * l2 * max(point.value, 0.0)), LEAST_NORM)


def fit_softmax(
    x: Tensor,
    y: Tensor,
    classes: int,
    statistics: tuple[Tensor, Tensor],
    l2: float,
    iterations: int,
    whiten: bool = True,
) -> LinearFit:
    """Fits features x [N, d] with labels y [N]; `statistics` are mean and scale [d] that standardise them.

    Args:
        iterations: of L-BFGS, at most.
        whiten: whether the covariance is used; for few images it takes longer than it saves.
    """
    return fit_each(x, y, classes, statistics, [l2], iterations, whiten=whiten)[0]


@torch.inference_mode(False)  # a tensor made there may not be written to elsewhere
@torch.no_grad()
def fit_each(
    x: Tensor,
    y: Tensor,
    classes: int,
    statistics: tuple[Tensor, Tensor],
    weights: Sequence[float],
    iterations: int,
    used: Tensor | None = None,
    whiten: bool = True,
) -> list[LinearFit]:
    """As `fit_softmax`, a fit for each l2 of `weights`.

    Args:
        used: bool [N], the images that are fitted; None: all.
    """
    features = Standardised(x, *statistics)
    share = None if used is None else (used / used.double().mean()).to(x.dtype)

    def loss(outputs: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        labels = y[part]
        log_p = outputs.log_softmax(1)
        entropy = -log_p.gather(1, labels.unsqueeze(1))
        error = log_p.exp_().sub_(functional.one_hot(labels, classes))
        if share is not None:
            entropy, error = entropy * share[part].unsqueeze(1), error * share[part].unsqueeze(1)
        return entropy.sum(dtype=torch.float64), error

    curvature = features.curvature((classes - 1) / classes**2 or 1.0) if whiten else None
    start = torch.zeros(classes, x.shape[1] + 1, dtype=torch.float64, device=x.device)
    fits = []
    for l2 in weights:
        coordinates = Coordinates(curvature, l2)
        evaluate = evaluator(features, coordinates, loss, l2)
        minimum = minimise(evaluate, start, partial(has_converged, l2=l2), iterations)
        solution = coordinates.weights(minimum.point.place)
        weight, bias = features.for_raw(solution)
        value = minimum.point.value
        fits.append(LinearFit(weight, bias, minimum.converged, minimum.iterations, value, l2))
    return fits
