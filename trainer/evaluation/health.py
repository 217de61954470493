"""Health of a representation, without labels: what of its space is used, how its points lie in it.

Figures of features [N, d], float32 or float64, computed in float64 on one process from all rows, so that they
are the same on any number of ranks. Features come from float32 networks: what is no larger than their
rounding counts as zero, so that the figures of a collapsed representation are not those of its noise.
"""

import torch
from torch import Tensor
from torch.nn import functional

from data_pipelines.common.errors import UserError
from trainer.evaluation.context import EvaluationContext, Evaluator

ROUNDING = torch.finfo(torch.float32).eps
DEAD = 1e-3  # of the mean standard deviation: a dimension that varies less is dead
PAIRED = 2048  # rows at most whose pairs are compared: 2 million pairs


class Health(Evaluator):
    """Health of y on test images, during pretraining; labels are not read."""

    name = "health"

    def run(self, context: EvaluationContext) -> dict[str, float]:
        rows = context.sampled(context.test, mirrored=True)
        if rows is None:
            return {}
        return health(*(rows[0][name].to(context.device) for name in ("y", "mirrored")))


def health(y: Tensor, mirrored: Tensor | None = None) -> dict[str, float]:
    """All figures of y [N, d], and alignment with `mirrored`, the y [N, d] of the same images mirrored.

    The mirror image (left and right exchanged) is the second view in every run, whether its own views are
    random or not: it needs no random numbers, and runs of different recipes can be compared. Where mirroring
    changes what is seen, as with digits, no good encoder aligns it. Fewer than 2 images have no figures.

    Raises:
        UserError: a feature is not finite.
    """
    if not all(x.isfinite().all() for x in (y, mirrored) if x is not None):
        raise UserError("features hold NaN or infinity: the encoder diverged; lower optimizer.lr")
    if len(y) < 2:
        return {}
    figures = {
        "health/effective_rank": effective_rank(y),
        "health/uniformity": uniformity(y),
        "health/dead_dimensions": dead_dimensions(y),
    }
    if mirrored is not None:
        figures["health/alignment"] = alignment(y, mirrored)
    return figures


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the singular values, divided by their sum, of the centred features [N, d].

    Between 1 (a line, or a point) and d (equal spread along d axes). Centred, unlike RankMe's: a constant
    that all images share does not distinguish them. Source: Roy and Vetterli 2007 (EUSIPCO).
    """
    x = x.double()
    values = torch.linalg.svdvals(x - x.mean(0))
    values = values[values > ROUNDING * x.norm()]
    if not len(values):
        return 1.0
    return torch.special.entr(values / values.sum()).sum().exp().item()


def uniformity(x: Tensor) -> float:
    """log mean exp(-2 |a - b|²) over the pairs of the features [N, d] at unit length, N at least 2.

    0 where all are the same; the lower, the more evenly they are spread over the sphere (-4 for points
    uniform on one of many dimensions). Beyond 2,048 rows every second (third, …) is taken. Source: Wang and
    Isola 2020 (arXiv 2005.10242), t = 2.
    """
    rows = x[:: -(-len(x) // PAIRED)].double()
    distances = torch.pdist(functional.normalize(rows, dim=1))
    return (-2 * distances.square()).exp().mean().log().item()


def alignment(x: Tensor, other: Tensor) -> float:
    """Mean |a - b|² of the features [N, d] of two views of the same images, at unit length.

    0 where views make no difference, 2 where they are as unlike as different images on a sphere. Source:
    Wang and Isola 2020 (arXiv 2005.10242), alpha = 2.
    """
    a, b = (functional.normalize(view.double(), dim=1) for view in (x, other))
    return (a - b).square().sum(1).mean().item()


def dead_dimensions(x: Tensor) -> float:
    """Share of the d dimensions whose standard deviation is at most 1e-3 of the mean one, or is rounding."""
    x = x.double()
    deviation = x.std(0, correction=0)
    rounding = ROUNDING * x.square().mean(0).sqrt()
    return (deviation <= torch.maximum(DEAD * deviation.mean(), rounding)).double().mean().item()
