"""A map of test images by t-SNE of their features."""

from pathlib import Path

import numpy as np

from data_pipelines.draws import permutation
from trainer.evaluation.context import EvaluationContext, Evaluator
from trainer.evaluation.features import Examples
from trainer.evaluation.figures import tsne

THUMBNAIL = 32  # pixels a side


class FeatureMap(Evaluator):
    """Draws up to 2,000 test images in the plane by t-SNE of y; it has no figures."""

    name = "figures/tsne.png"

    def run(self, context: EvaluationContext) -> dict[str, float]:
        _, test = context.examples()
        if context.is_main and test is not None and len(test.ids) >= tsne.FEWEST:
            with context.drawing("tsne.png") as path:
                self.draw(path, context, test)
        return {}

    def draw(self, path: Path, context: EvaluationContext, test: Examples) -> None:
        recipe = context.recipe
        shown = np.sort(permutation(len(test.ids), recipe.seed, "t-SNE")[: tsne.MOST])
        points = tsne.embed(test.features["y"][shown].numpy(), recipe.seed)
        cells = tsne.on_grid(points)
        ids = test.ids[shown[list(cells.values())]]
        thumbnails = context.pictures(context.test, ids, min(recipe.data.size, THUMBNAIL))
        tsne.draw(path, points, test.labels[shown].numpy(), context.classes, cells, thumbnails)
