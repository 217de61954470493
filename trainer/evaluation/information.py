"""The objective's information estimates on images that were not trained on.

The estimates of training, `mi/…` without `/held_out`, are in-sample: a critic can learn its pairs by heart. A
bound is a lower bound in expectation, and only for a critic that has not been fitted to these pairs.
"""

from contextlib import closing

import torch
from torch import Tensor

from data_pipelines.dali import ImageViews
from data_pipelines.loader import Loader
from data_pipelines.plan import BatchShare, Plan
from trainer.engines.precision import forward_precision
from trainer.evaluation.context import EvaluationContext, Evaluator
from trainer.evaluation.overlap import trained_and_tested


class Information(Evaluator):
    """The objective's estimates on test images, nats, by the names of training and `/held_out`.

    Computed by rank 0, a few groups of negatives at a time, on images that do not depend on the ranks. There
    are none where the split is smaller than the groups, or has images that are trained on.
    """

    name = "mi"

    def wanted(self, context: EvaluationContext) -> bool:
        return trained_and_tested(context.recipe, context.dataset) is None

    def run(self, context: EvaluationContext) -> dict[str, float]:
        return heldout_estimates(context) if context.is_main else {}


@torch.no_grad()
def heldout_estimates(context: EvaluationContext) -> dict[str, float]:
    """The mean estimates over batches of whole groups of at most `online_images` test images."""
    recipe, test = context.recipe, context.test
    unit = recipe.objective.heldout_batch(recipe.groups, recipe.batch)
    images = min(test.images, context.options.online_images) // unit * unit
    views, share = recipe.data.views, BatchShare(unit)
    sources = share.sources(len(views))
    maker = ImageViews(test, context.images, views, sources, recipe.seed, share.micro_batch)
    plan = Plan(recipe.seed, test.shards, recipe.data.window)
    estimates: dict[str, list[Tensor]] = {}
    with closing(Loader(maker, plan, share, start=0, stop=images)) as loader:
        for batch in loader:
            with forward_precision(recipe.precision, context.device):
                values = context.objective(batch)
            for name, value in values.items():
                if name.startswith("mi/") and isinstance(value, Tensor):
                    estimates.setdefault(name, []).append(value.double())
    return {f"{name}/held_out": torch.stack(values).mean().item() for name, values in estimates.items()}
