"""The nearest neighbours of test images, as a page."""

from pathlib import Path

import torch

from data_pipelines.draws import permutation
from trainer.evaluation.context import EvaluationContext, Evaluator
from trainer.evaluation.features import Examples
from trainer.evaluation.figures import images
from trainer.evaluation.knn import nearest

SHOWN, NEAREST = 8, 8  # test images, and neighbours of each


class Neighbours(Evaluator):
    """Draws test images beside their nearest reference images by y; it has no figures."""

    name = "figures/neighbours.png"

    def run(self, context: EvaluationContext) -> dict[str, float]:
        reference, test = context.examples()
        if context.is_main and reference is not None and test is not None:
            with context.drawing("neighbours.png") as path:
                self.draw(path, context, reference, test)
        return {}

    def draw(self, path: Path, context: EvaluationContext, reference: Examples, test: Examples) -> None:
        chosen = permutation(len(test.ids), context.recipe.seed, "shown")[:SHOWN]
        shown = torch.from_numpy(chosen.copy())
        rows = nearest(reference.features["y"], test.features["y"][shown], NEAREST)
        images.neighbours(
            path,
            context.pictures(context.test, test.ids[chosen]),
            [context.pictures(context.reference, reference.ids[row]) for row in rows.numpy()],
            test.labels[shown].tolist(),
            reference.labels[rows].tolist(),
            context.classes,
        )
