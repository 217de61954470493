"""Linear SVMs, one class against the rest, to the minimum of mean hinge loss + l2/2 · ||w||², the bias free.

The hinge loss has a kink, so what L-BFGS minimises is the augmented Lagrangian: hinge losses rounded over a
width that need not shrink, each moved by its multiplier. The multipliers of all images are a point of the
dual problem (after a scaling that makes those of both sides of a class sum to the same), and the dual
objective is a lower bound. It has converged where the sum over classes lies above that bound by at most GAP
of itself. Sources: Cortes and Vapnik 1995; Rockafellar 1976 for the method of multipliers.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.evaluation.lbfgs import Point, minimise
from trainer.evaluation.linear_fit import Coordinates, LinearFit, Standardised, evaluator

GAP = 2e-4
WIDTH = 0.1  # of a margin, over which the hinge is rounded
INNER = 0.3  # the precision of an inner minimum, against the root of the gap that is left
CURVATURE = 1.0  # images in the rounded part of the hinge, divided by its width: about one
MULTIPLIERS = 2**25  # at a time, images x classes: 128 MiB in float32


@torch.inference_mode(False)  # a tensor made there may not be written to elsewhere
@torch.no_grad()
def fit_svm(
    x: Tensor, y: Tensor, classes: int, statistics: tuple[Tensor, Tensor], l2: float, iterations: int
) -> LinearFit:
    """Fits features x [N, d] with labels y [N]; `statistics` are mean and scale [d] that standardise them.

    Some classes at a time, so that their multipliers fit into the memory.

    Args:
        l2: above 0.
        iterations: of L-BFGS, at most, for each of these parts; the fit has the greatest number.
    """
    features = Standardised(x, *statistics)
    coordinates = Coordinates(features.curvature(CURVATURE), l2)
    at_once = max(1, MULTIPLIERS // len(x))
    fits = [
        _Svms(features, coordinates, y, part, l2).fit(iterations)
        for part in torch.arange(classes, device=x.device).split(at_once)
    ]
    return LinearFit(
        torch.cat([fit.weight for fit in fits]),
        torch.cat([fit.bias for fit in fits]),
        all(fit.converged for fit in fits),
        max(fit.iterations for fit in fits),
        sum(fit.objective for fit in fits),
        l2,
    )


@dataclass(frozen=True)
class _Svms:
    """The machines of the classes `part` int64 [C]."""

    features: Standardised
    coordinates: Coordinates
    labels: Tensor
    part: Tensor
    l2: float

    def fit(self, iterations: int) -> LinearFit:
        x = self.features.x
        multipliers = x.new_zeros(len(x), len(self.part))
        place = torch.zeros(len(self.part), x.shape[1] + 1, dtype=torch.float64, device=x.device)
        gap, left, moved, inner = 1.0, iterations, True, INNER
        while left and moved and gap > GAP:

            def rounded(outputs: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
                signs, known = self.signs(rows, outputs), multipliers[rows]
                excess = 1 - signs * outputs + WIDTH * known
                share = (excess / WIDTH).clamp_(0, 1)
                value = share * (excess - WIDTH / 2 * share) - WIDTH / 2 * known.square()
                return value.sum(dtype=torch.float64), share.mul_(signs).neg_()

            aim = inner * math.sqrt(2 * self.l2 * gap)

            def near(point: Point, aim: float = aim) -> bool:
                return point.norm <= aim * math.sqrt(max(point.value, 0.0))

            evaluate = evaluator(self.features, self.coordinates, rounded, self.l2)
            minimum = minimise(evaluate, place, near, left)
            place, left = minimum.point.place, left - max(1, minimum.iterations)
            if not minimum.iterations:  # the gap is due to the place, not to the multipliers
                inner /= 3
            objective, bound = self.bounds(self.coordinates.weights(place), multipliers)
            # Where L-BFGS gave up rounding is all there is.
            gap, moved = (objective - bound) / max(objective, 1e-6), minimum.converged
        solution = self.coordinates.weights(place)
        weight, bias = self.features.for_raw(solution)
        return LinearFit(weight, bias, gap <= GAP, iterations - left, objective, self.l2)

    def signs(self, rows: slice, outputs: Tensor) -> Tensor:
        """[n, C]: 1 where an image is of the class, else -1; of the type of `outputs`."""
        return (2 * (self.labels[rows].unsqueeze(1) == self.part) - 1).to(outputs.dtype)

    def bounds(self, solution: Tensor, multipliers: Tensor) -> tuple[float, float]:
        """The objective at `solution` [C, d + 1], and the dual one at the multipliers that follow; both sums.

        Moves `multipliers` [N, C] to those.
        """

        def hinges(outputs: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            signs = self.signs(rows, outputs)
            below = 1 - signs * outputs
            multipliers[rows] = (below / WIDTH + multipliers[rows]).clamp_(0, 1)
            positive = multipliers[rows] * (signs > 0)
            return below.relu().sum(dtype=torch.float64), torch.cat(
                [positive, multipliers[rows] - positive], dim=1
            )

        loss, sums = self.features.reduce(solution, hinges)
        objective = loss + self.l2 / 2 * solution[:, :-1].square().sum().item()
        sides = sums.view(2, len(self.part), -1)  # multipliers times images: those of the class, and the rest
        totals = sides[:, :, -1]
        both = totals.min(0).values
        scaled = sides[:, :, :-1] * (both / totals.clamp_min(1e-300)).unsqueeze(-1)
        pull = (scaled[0] - scaled[1]).square().sum().item() / (2 * self.l2)
        return objective, 2 * both.sum().item() - pull
