"""L-BFGS for convex functions whose values are sums of float32 products, and so are rounded.

The line search reads slopes alone: of a convex function their sign says on which side of the minimum a step
ended, also where the values of two points no longer differ. Source: Nocedal and Wright 2006, algorithm 7.4.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

MEMORY = 20  # pairs of steps and changes of the gradient that are kept
SEARCHED = 30  # evaluations of one line search, at most
STEEPER, PAST = 0.9, 0.5  # of the first slope: what may be left of it before the minimum, and behind it


@dataclass(frozen=True)
class Point:
    """A place [C, p], the value there, its gradient [C, p], and the norm that convergence is judged by."""

    place: Tensor
    value: float
    gradient: Tensor
    norm: float


@dataclass(frozen=True)
class Minimum:
    """The last point, the iterations that led to it, and whether the rule of convergence holds there."""

    point: Point
    iterations: int
    converged: bool


def minimise(
    evaluate: Callable[[Tensor], Point],
    start: Tensor,
    converged: Callable[[Point], bool],
    iterations: int,
) -> Minimum:
    """Minimises a convex function from `start` [C, p] on, in at most so many iterations.

    It also ends, not converged, where rounding leaves no direction in which the function still falls.
    """
    point, steps = evaluate(start), deque[tuple[Tensor, Tensor, Tensor]](maxlen=MEMORY)
    for iteration in range(iterations):
        if converged(point):
            return Minimum(point, iteration, True)
        step = -_inverse_hessian(point.gradient, steps)
        length = 1.0 if steps else 1 / max(1.0, step.norm().item())
        reached = search(evaluate, point, step, length)
        if reached is None:
            return Minimum(point, iteration, False)
        moved, changed = reached.place - point.place, reached.gradient - point.gradient
        curvature = (moved * changed).sum()
        if curvature > 0:
            steps.append((moved, changed, 1 / curvature))
        point = reached
    return Minimum(point, iterations, converged(point))


def _inverse_hessian(gradient: Tensor, steps: deque[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The gradient times the inverse Hessian that the steps tell of: the two loops of L-BFGS."""
    direction, factors = gradient.clone(), []
    for moved, changed, inverse in reversed(steps):
        factors.append(inverse * (moved * direction).sum())
        direction -= factors[-1] * changed
    if steps:
        _, changed, inverse = steps[-1]
        direction /= inverse * changed.square().sum()
    for (moved, changed, inverse), factor in zip(steps, reversed(factors), strict=True):
        direction += (factor - inverse * (changed * direction).sum()) * moved
    return direction


def search(evaluate: Callable[[Tensor], Point], start: Point, step: Tensor, length: float) -> Point | None:
    """A point along `step` [C, p] whose slope is small against that of `start`; None where none is met."""
    first = (start.gradient * step).sum().item()
    if not first < 0:
        return None
    below, above = (0.0, first), (math.inf, math.inf)  # (length, slope) before and behind the minimum
    for _ in range(SEARCHED):
        point = evaluate(start.place + length * step)
        slope = (point.gradient * step).sum().item()
        if math.isfinite(point.value) and STEEPER * first <= slope <= -PAST * first:
            return point
        if slope < 0:
            below = length, slope
        else:  # also where it is not finite
            above = length, slope
        if above[0] == math.inf:
            length *= 4
        else:
            share = below[1] / (below[1] - above[1]) if math.isfinite(above[1]) else 0.1
            length = below[0] + min(max(share, 0.1), 0.9) * (above[0] - below[0])
    return None
