"""What a run leaves beside its checkpoints: the exported encoder, pictures, the last lines on the screen."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_pipelines.dataset import Dataset
from data_pipelines.draws import permutation
from data_pipelines.loader import Images, ViewMaker, in_order
from data_pipelines.reader import Reader
from trainer import assembly
from trainer.evaluation import figures
from trainer.evaluation.knn import nearest
from trainer.recipe import Pretrain
from trainer.runtime import checkpoint
from trainer.runtime.journal import read
from trainer.runtime.run_folder import RunFolder
from trainer.runtime.tracking import open_command, uri_for
from trainer.training import Training


def export_encoder(training: Training, folder: RunFolder) -> None:
    """The encoder alone, as safetensors with all that is needed to build and feed it."""
    metadata = {
        "encoder": json.dumps(assembly.encoder_options(training.recipe)),
        "normalize": training.recipe.data.normalize.model_dump_json(),
        "images": str(training.images),
        "recipe": (folder.path / "recipe.yaml").read_text(),
    }
    checkpoint.export(folder.encoder, training.objective.encoder.state_dict(), metadata)


def draw_neighbours(
    path: Path, sets, readers: tuple[Reader, Reader], recipe: Pretrain, dataset: Dataset
) -> None:
    """Test images beside their nearest training images by y."""
    (train, train_labels), (test, test_labels) = sets
    shown = torch.from_numpy(permutation(len(test_labels), recipe.seed, "shown")[:8].copy())
    found = nearest(train["y"], test["y"][shown], 8)
    figures.neighbours(
        path,
        pictures(readers[1], shown.numpy(), recipe),
        [pictures(readers[0], row, recipe) for row in found.numpy()],
        test_labels[shown].tolist(),
        train_labels[found].tolist(),
        dataset.classes,
    )


def pictures(reader: Reader, ids: np.ndarray, recipe: Pretrain) -> list[np.ndarray]:
    """Samples as float [H, W, 3] in [0, 1]."""
    images = Images(recipe.data.size, recipe.data.normalize, 1, torch.device("cpu"))
    views = torch.cat([view for view, _ in in_order(reader, images, np.asarray(ids), len(ids))])
    return [as_picture(view, recipe) for view in views]


def as_picture(view: Tensor, recipe: Pretrain) -> np.ndarray:
    """A normalised view [3, H, W] as float [H, W, 3] in [0, 1]."""
    normalize = recipe.data.normalize
    mean, std = torch.tensor(normalize.mean), torch.tensor(normalize.std)
    return (view.float().cpu().permute(1, 2, 0) * std + mean).clamp(0, 1).numpy()


def draw_accuracies(folder: RunFolder) -> None:
    """The picture of results.json."""
    figures.accuracies(folder.path / "figures" / "accuracies.png", folder.results())


CURVES = {  # what the picture calls it -> the metric
    "loss": "loss",
    "loss/random_guess": "local/random_guess",
    "mi/train": "mi/local",
    "mi/test": "mi/local/held_out",
    "mi/ceiling": "mi/local/ceiling",
    "knn/y": "knn/y/online",
}


def draw_views(training: Training, folder: RunFolder) -> None:
    """The picture of what the encoder sees: the first images of the run as its views."""
    recipe, count = training.recipe, 16
    maker = ViewMaker(
        training.reader,
        replace(training.image_options, device=torch.device("cpu"), dtype=torch.float32),
        recipe.data.views,
        [0] * len(recipe.data.views),
        recipe.seed,
        count,
        print,
    )
    positions = [np.arange(count)] * len(recipe.data.views)
    views, _ = maker([training.plan.ids(0, count)], positions)
    shown = [[as_picture(image, recipe) for image in view] for view in views]
    figures.views(folder.path / "figures" / "views.png", shown)


def draw_curves(folder: RunFolder) -> None:
    """The picture of the journal's metrics."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for record, _ in read(folder.journal):
        if record["kind"] == "metric":
            images, values = series.setdefault(record["name"], ([], []))
            images.append(record["images"])
            values.append(record["value"])
    drawn = {shown: series[name] for shown, name in CURVES.items() if name in series}
    figures.curves(folder.path / "figures" / "curves.png", drawn)


def summary(folder: RunFolder, recipe: Pretrain) -> str:
    """The last lines of a run: what was learned, where it is, how to look at it."""
    lines = [figures.table(folder.results()), ""] if folder.results() else []
    lines.append(f"run       {folder.path}")
    lines.append(f"encoder   {folder.encoder}")
    pictures = sorted(path.name for path in (folder.path / "figures").glob("*.png"))
    if pictures:
        lines.append(f"pictures  {folder.path / 'figures'}: {', '.join(pictures)}")
    if uri := uri_for(recipe.tracking.uri, Path(recipe.outputs)):
        lines.append(f"MLflow    {open_command(uri)}")
    return "\n".join(lines)
