"""What a run leaves beside its checkpoints: the exported encoder, pictures, the last lines on the screen."""

import json
import re
from array import array
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data_pipelines.common.errors import UserError
from data_pipelines.dali import ImageViews
from data_pipelines.views import View
from trainer.evaluation.figures import charts, endings, generation, images, reconstructions
from trainer.evaluation.pictures import as_picture, drawing
from trainer.exports.encoder import export
from trainer.exports.tensors import not_finite
from trainer.objectives.objective import EncoderObjective
from trainer.recipe.training_recipe import TrainingRecipe
from trainer.runs.folder import RunFolder
from trainer.tasks import commands
from trainer.tracking.address import open_command, uri_for
from trainer.tracking.journal import read
from trainer.training.build import ImageTrainer

SHOWN = 24  # images on the page of views, together with their views


def export_encoder(trainer: ImageTrainer, objective: EncoderObjective, folder: RunFolder) -> None:
    """The encoder alone, as safetensors with all that is needed to build and feed it.

    Raises:
        UserError: it cannot be written, or a number in it is not finite: `load_encoder` refuses such a file.
    """
    tensors = objective.encoder.state_dict()
    if spoilt := not_finite(tensors):
        raise UserError(
            f"{folder.encoder} is not written: {spoilt} holds NaN or infinity; start anew with a lower "
            "optimizer.lr or optimizer.clip=1, and run=NAME"
        )
    metadata = {
        "encoder": json.dumps(trainer.recipe.encoder_options()),
        "normalize": trainer.recipe.data.normalize.model_dump_json(),
        "images": str(trainer.images),
        "recipe": (folder.path / "recipe.yaml").read_text(),
    }
    export(folder.encoder, tensors, metadata)


# ---- pictures ------------------------------------------------------------------------------------


def draw_views(trainer: ImageTrainer, folder: RunFolder) -> None:
    """What the encoder sees: the first images of the run, beside them their views where those differ."""
    recipe = trainer.recipe
    views = recipe.data.views
    captions = [f"view {number + 1}" for number in range(len(views))] if len(views) > 1 else ["view"]
    if views == [View()]:
        captions = ["the images as they are: nothing about their view is random"]
    else:
        views, captions = [*views, View()], [*captions, "original"]
    count = SHOWN // len(views)
    with drawing(folder.path, "views.png") as path:
        maker = ImageViews(
            trainer.data.reader,
            replace(trainer.data.options, device=torch.device("cpu"), dtype=torch.float32),
            views,
            [0] * len(views),
            recipe.seed,
            count,
            print,
        )
        made = maker([trainer.data.plan.ids(0, count)], [np.arange(count)] * len(views)).views
        shown = [[as_picture(image, recipe.data.normalize) for image in view] for view in made]
        # Drawn last, as it has no place among the views of the run; shown first.
        images.views(path, [shown[-1], *shown[:-1]], [captions[-1], *captions[:-1]])


def draw_curves(folder: RunFolder) -> None:
    """The journal's metrics over images seen."""
    with drawing(folder.path, "curves.png") as path:
        series: dict[str, tuple[array, array]] = {}  # 16 bytes a point, of which there may be millions
        for record, _ in read(folder.journal):
            if record["kind"] == "metric":
                images, values = series.setdefault(record["name"], (array("q"), array("d")))
                images.append(record["images"])
                values.append(record["value"])
        charts.curves(path, series)


def draw_accuracies(folder: RunFolder) -> None:
    """The bars of results.json, where it holds accuracies."""
    if not charts.table(folder.results()):
        return
    with drawing(folder.path, "accuracies.png") as path:
        charts.accuracies(path, folder.results())


# ---- the last lines ------------------------------------------------------------------------------


def information(folder: RunFolder) -> str:
    """The last estimates on images that were not trained on; '' where there is none.

    Those of training are left out: they are in-sample, and a critic that has learned its pairs by heart makes
    them large.
    """
    last: dict[str, float] = {}
    if folder.journal.exists():
        for record, _ in read(folder.journal):
            if record["kind"] == "metric" and re.fullmatch(r"mi/.+/held_out", record["name"]):
                last[record["name"]] = record["value"]
    return "  ".join(f"{name} {value:.2f} nats" for name, value in last.items())


def summary(folder: RunFolder, recipe: TrainingRecipe, offers: Iterable[str] = ()) -> str:
    """The last lines of a run: what was learned, where it is, and commands for what may come next.

    `offers`: commands for what may come next, each behind a word for it.
    """
    results, lines = folder.results(), []
    tables = charts.table(results), reconstructions.table(results), generation.table(results)
    for table in (*tables, endings.endings(results)) if results else ():
        lines += [table, ""] if table else []
    if estimates := information(folder):
        lines += [f"information, test images: {estimates}", ""]
    reasons = folder.left_out()
    for why in dict.fromkeys(reasons.values()):
        names = [name for name, of_name in reasons.items() if of_name == why]
        lines.append(f"left out  {', '.join(names)}: {why}")
    lines.append(f"run       {folder.path}")
    if folder.encoder.exists():
        lines.append(f"encoder   {folder.encoder}")
    pictures = sorted(path.name for path in (folder.path / "figures").glob("*.png"))
    if pictures:
        lines.append(f"pictures  {folder.path / 'figures'}: {', '.join(pictures)}")
    if uri := uri_for(recipe.tracking.uri, Path(recipe.outputs)):
        lines.append(f"MLflow    {open_command(uri)}")
    if folder.encoder.exists():
        lines.append(f"load      {commands.load_encoder(folder)}")
    return "\n".join([*lines, *offers])
