"""What a run leaves beside its checkpoints: the exported encoder, pictures, the last lines on the screen."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data_pipelines.dali import ImageViews, in_order
from data_pipelines.dataset import Dataset
from data_pipelines.draws import permutation
from data_pipelines.image_options import ImageOptions
from data_pipelines.reader import Reader
from data_pipelines.views import View
from trainer.evaluation import reconstruction
from trainer.evaluation.features import Examples, gathered, subset
from trainer.evaluation.figures import charts, images, reconstructions, tsne
from trainer.evaluation.knn import nearest
from trainer.evaluation.reconstruction import LinearCodec, Sample, interpolated, squared_errors
from trainer.exports.encoder import export
from trainer.networks.build import encoder_options
from trainer.objectives.autoencoder import Codec
from trainer.recipe.schema import Pretrain
from trainer.runs.folder import RunFolder
from trainer.tracking.address import open_command, uri_for
from trainer.tracking.journal import read
from trainer.training.trainer import Trainer

SHOWN = 24  # images on the page of views, together with their views
THUMBNAIL = 32  # pixels a side, on the map of test images
DECODED = 64  # images at a time
RECONSTRUCTED = 24  # test images beside their reconstructions
PAIRS, STEPS = 4, 9  # pairs of test images, and images from the one to the other


def export_encoder(trainer: Trainer, objective: nn.Module, folder: RunFolder) -> None:
    """The encoder alone, as safetensors with all that is needed to build and feed it."""
    metadata = {
        "encoder": json.dumps(encoder_options(trainer.recipe)),
        "normalize": trainer.recipe.data.normalize.model_dump_json(),
        "images": str(trainer.images),
        "recipe": (folder.path / "recipe.yaml").read_text(),
    }
    export(folder.encoder, objective.encoder.state_dict(), metadata)


# ---- pictures ------------------------------------------------------------------------------------


@contextmanager
def drawing(folder: RunFolder, name: str) -> Iterator[Path]:
    """The path of a picture of the run; one that cannot be drawn costs a line on the screen, no results."""
    path = folder.path / "figures" / name
    with suppress(OSError):  # writing the picture will say what is wrong
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    except Exception as error:
        print(f"warning: {path} was not drawn: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def draw_views(trainer: Trainer, folder: RunFolder) -> None:
    """What the encoder sees: the first images of the run, beside them their views where those differ."""
    recipe = trainer.recipe
    views = recipe.data.views
    captions = [f"view {number + 1}" for number in range(len(views))] if len(views) > 1 else ["view"]
    if views == [View()]:
        captions = ["the images as they are: nothing about their view is random"]
    else:
        views, captions = [*views, View()], [*captions, "original"]
    count = SHOWN // len(views)
    with drawing(folder, "views.png") as path:
        maker = ImageViews(
            trainer.reader,
            replace(trainer.image_options, device=torch.device("cpu"), dtype=torch.float32),
            views,
            [0] * len(views),
            recipe.seed,
            count,
            print,
        )
        made = maker([trainer.plan.ids(0, count)], [np.arange(count)] * len(views)).views
        shown = [[as_picture(image, recipe) for image in view] for view in made]
        # Drawn last, as it has no place among the views of the run; shown first.
        images.views(path, [shown[-1], *shown[:-1]], [captions[-1], *captions[:-1]])


def look_at_unlabelled(
    trainer: Trainer, objective: nn.Module, folder: RunFolder, say: Callable[[str], None]
) -> dict[str, float]:
    """The pictures of test images of data without classes, and the figures that need no label; collective.

    Raises SharedError as `reconstruction.measure`.
    """
    recipe, dataset, sets = trainer.recipe, trainer.reader.dataset, []
    readers = Reader(dataset, recipe.data.train), Reader(dataset, recipe.data.test)

    def encode(view: Tensor) -> dict[str, Tensor]:
        return {"y": objective.features(view)["y"]}

    objective.eval()
    for reader in readers:
        ids = subset(reader, recipe.evaluate.online_images, recipe.seed)
        found = gathered(encode, reader, ids, trainer.image_options, recipe.evaluate.batch)
        sets.append(found and Examples(*found, ids))
    if trainer.context.is_main:
        draw_test_images(folder, sets, readers, recipe, dataset)
    codec, results = getattr(objective, "codec", None), {}
    if codec is not None:
        images, seed = trainer.image_options, recipe.seed
        results, linear = reconstruction.measure(codec, *readers, images, recipe.evaluate, seed, say)
        if trainer.context.is_main:
            draw_reconstructions(folder, codec, linear, readers[1], images, seed)
    for reader in readers:
        reader.close()
    return results


def draw_test_images(
    folder: RunFolder,
    sets: list[Examples],
    readers: tuple[Reader, Reader],
    recipe: Pretrain,
    dataset: Dataset,
) -> None:
    """Test images beside their nearest neighbours, and on a map; sets and readers: training, then test."""
    with drawing(folder, "neighbours.png") as path:
        draw_neighbours(path, sets, readers, recipe, dataset)
    if len(sets[1].ids) >= tsne.FEWEST:
        with drawing(folder, "tsne.png") as path:
            draw_tsne(path, sets[1], readers[1], recipe, dataset)


def draw_neighbours(
    path: Path, sets: list[Examples], readers: tuple[Reader, Reader], recipe: Pretrain, dataset: Dataset
) -> None:
    """Test images beside their nearest training images by y."""
    train, test = sets
    shown = torch.from_numpy(permutation(len(test.ids), recipe.seed, "shown")[:8].copy())
    found = nearest(train.features["y"], test.features["y"][shown], 8)
    images.neighbours(
        path,
        pictures(readers[1], test.ids[shown], recipe),
        [pictures(readers[0], train.ids[row], recipe) for row in found.numpy()],
        test.labels[shown].tolist(),
        train.labels[found].tolist(),
        dataset.classes,
    )


def draw_tsne(path: Path, test: Examples, reader: Reader, recipe: Pretrain, dataset: Dataset) -> None:
    """The map of up to 2,000 test images by t-SNE of y."""
    shown = np.sort(permutation(len(test.ids), recipe.seed, "t-SNE")[: tsne.MOST])
    points = tsne.embed(test.features["y"][shown].numpy(), recipe.seed)
    cells = tsne.on_grid(points)
    images = pictures(reader, test.ids[shown[list(cells.values())]], recipe, min(recipe.data.size, THUMBNAIL))
    tsne.draw(path, points, test.labels[shown].numpy(), dataset.classes, cells, images)


def draw_reconstructions(
    folder: RunFolder,
    codec: Codec,
    linear: LinearCodec | None,
    test: Reader,
    images: ImageOptions,
    seed: int,
) -> None:
    """Test images beside what the codec makes of them, and what it makes of z between two of them."""
    ids = permutation(test.images, seed, "shown")[:RECONSTRUCTED]
    views = next(Sample(test, ids, images, len(ids)).views())
    originals = codec.pixels(views)
    with drawing(folder, "reconstructions.png") as path, torch.no_grad():
        made = {"reconstruction": codec.decode(*codec.encode(views))}
        if linear is not None:
            made["linear codec"] = linear(originals)
        shown = {name: (_drawn(x), squared_errors(x, originals).tolist()) for name, x in made.items()}
        reconstructions.reconstructions(path, _drawn(originals), shown)
    pairs = min(PAIRS, len(ids) // 2)
    if pairs:
        ends = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
        with drawing(folder, "interpolations.png") as path:
            between = interpolated(codec, *(views[end] for end in ends), STEPS)
            reconstructions.interpolations(
                path,
                *(_drawn(originals[end]) for end in ends),
                {name: [_drawn(frames) for frames in found] for name, found in between.items()},
            )


def _drawn(pixels: Tensor) -> list[np.ndarray]:
    """Pixels [n, 3, H, W] as pictures [H, W, 3] in [0, 1]."""
    return list(pixels.clamp(0, 1).float().cpu().permute(0, 2, 3, 1).numpy())


def pictures(reader: Reader, ids: np.ndarray, recipe: Pretrain, size: int | None = None) -> list[np.ndarray]:
    """Samples as float [H, W, 3] in [0, 1], `size` pixels a side (None: as the encoder sees them)."""
    images = ImageOptions(size or recipe.data.size, recipe.data.normalize, 1, torch.device("cpu"))
    batches = in_order(reader, images, np.asarray(ids), min(len(ids), DECODED))
    return [as_picture(view, recipe) for batch, _ in batches for view in batch]


def as_picture(view: Tensor, recipe: Pretrain) -> np.ndarray:
    """A normalised view [3, H, W] as float [H, W, 3] in [0, 1]."""
    normalize = recipe.data.normalize
    mean, std = torch.tensor(normalize.mean), torch.tensor(normalize.std)
    return (view.float().cpu().permute(1, 2, 0) * std + mean).clamp(0, 1).numpy()


def draw_curves(folder: RunFolder) -> None:
    """The journal's metrics over images seen."""
    with drawing(folder, "curves.png") as path:
        series: dict[str, tuple[list[int], list[float]]] = {}
        for record, _ in read(folder.journal):
            if record["kind"] == "metric":
                images, values = series.setdefault(record["name"], ([], []))
                images.append(record["images"])
                values.append(record["value"])
        charts.curves(path, series)


def draw_accuracies(folder: RunFolder) -> None:
    """The bars of results.json, where it holds accuracies."""
    if not charts.table(folder.results()):
        return
    with drawing(folder, "accuracies.png") as path:
        charts.accuracies(path, folder.results())


# ---- the last lines ------------------------------------------------------------------------------


def summary(folder: RunFolder, recipe: Pretrain) -> str:
    """The last lines of a run: what was learned, where it is, how to look at it."""
    results, lines = folder.results(), []
    for table in (charts.table(results), reconstructions.table(results)) if results else ():
        lines += [table, ""] if table else []
    lines.append(f"run       {folder.path}")
    if folder.encoder.exists():
        lines.append(f"encoder   {folder.encoder}")
    pictures = sorted(path.name for path in (folder.path / "figures").glob("*.png"))
    if pictures:
        lines.append(f"pictures  {folder.path / 'figures'}: {', '.join(pictures)}")
    if uri := uri_for(recipe.tracking.uri, Path(recipe.outputs)):
        lines.append(f"MLflow    {open_command(uri)}")
    return "\n".join(lines)
