"""Multinomial logistic regression to the minimum: mean cross-entropy + l2/2 · ||W||², the bias free.

It has converged where the norm of the gradient by standardised weights and bias is at most sqrt(2 · l2 ·
excess). The objective is l2-strongly convex in the weights, so it is then above the least by at most that
excess: RELATIVE of itself, or ABSOLUTE nats where classes are so easy that little is left of it. Where
l2 = 0, LEAST_NORM holds.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from trainer.evaluation.lbfgs import Point, minimise
from trainer.evaluation.linear_fit import Coordinates, LinearFit, Loss, Standardised, evaluator

RELATIVE, ABSOLUTE = 1e-5, 1e-6
LEAST_NORM = 1e-7
DECORRELATED = 100  # iterations in coordinates of the covariance; what takes longer has easy classes


def has_converged(point: Point, l2: float) -> bool:
    """The rule that the module states."""
    excess = max(RELATIVE * point.value, ABSOLUTE)
    return point.norm <= max(math.sqrt(2 * l2 * excess), LEAST_NORM)


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
    return [_fit(features, curvature, loss, l2, start, iterations) for l2 in weights]


def _fit(
    features: Standardised, curvature: Tensor | None, loss: Loss, l2: float, start: Tensor, iterations: int
) -> LinearFit:
    """Where classes separate, the loss is flat near the minimum, and its curvature at the start misleads:
    the rest of the way goes in plain coordinates."""
    solution, done, rule = start, 0, partial(has_converged, l2=l2)
    ways = [(curvature, min(iterations, DECORRELATED))] if curvature is not None else []
    for curved, last in (*ways, (None, iterations)):
        coordinates = Coordinates(curved, l2)
        minimum = minimise(evaluator(features, coordinates, loss, l2), solution, rule, last - done)
        solution, done = coordinates.weights(minimum.point.place), done + minimum.iterations
        if minimum.converged:
            break
    return LinearFit(*features.for_raw(solution), minimum.converged, done, minimum.point.value, l2)
