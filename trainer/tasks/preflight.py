"""What a person should know of a recipe that its keys do not say outright: weights, rates, shares."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from data_pipelines.access import local_folder
from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Dataset
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.reader import Reader
from data_pipelines.shards.make import make
from trainer.checkpoints.format import Damaged, folder_name, read_manifest
from trainer.checkpoints.load import kept
from trainer.distributed import collectives
from trainer.evaluation.features import check_room, has_labels
from trainer.objectives.momentum_queue import path
from trainer.recipe.evaluation import Evaluate
from trainer.recipe.objectives import HybridObjective, MocoObjective, contrast_key, contrastive
from trainer.recipe.schema import Data, Pretrain
from trainer.runs.folder import RunFolder
from trainer.training.build import DTYPES
from trainer.training.groups import blocks_span_ranks
from trainer.training.schedules import whole_batches


def queue_bytes(recipe: Pretrain) -> int:
    """Bytes of the whole momentum queue; 0 where the objective has none."""
    options = contrastive(recipe.objective)
    if not isinstance(options, MocoObjective):
        return 0
    storage = torch.bfloat16 if options.queue.bf16 else DTYPES[recipe.precision]
    return options.queue.keys * options.head.width * storage.itemsize


def notes(
    recipe: Pretrain, images: int | None, world: int, device: torch.device, engine: str = ""
) -> Iterator[str]:
    """Lines about a run of `recipe` on `world` ranks and a split of so many images (None: not known)."""
    yield recipe.optimizer.describe_rate(recipe.batch)
    if recipe.precision == "float64" and engine.startswith("zero"):
        yield "warning: DeepSpeed keeps weights and moments in float32; under ddp and fsdp2 all is float64"
    if recipe.schedule.warmup >= recipe.images:
        yield (
            f"warning: schedule.warmup={recipe.schedule.warmup:,} is as long as the run of {recipe.images:,} "
            "images: that learning rate is never reached"
        )
    if recipe.profile and whole_batches(recipe.images, recipe.batch) // recipe.batch < recipe.profile + 10:
        yield (
            f"warning: profile={recipe.profile} writes nothing: it needs ten steps before, and the run has "
            f"{whole_batches(recipe.images, recipe.batch) // recipe.batch} in all"
        )
    options = contrastive(recipe.objective)
    directions = 1 + getattr(options, "symmetric", False)
    if isinstance(recipe.objective, HybridObjective):
        omega, alpha, sigma = recipe.objective.weighed()
        yield (
            f"loss = contrastive{', both ways,' if directions > 1 else ''} + {directions * omega:g} x "
            f"squared error of an image (omega {omega:g}; alpha {alpha:g} at sigma {sigma:g})"
        )
    if not isinstance(options, MocoObjective):
        return
    if options.shuffle and recipe.encoder.norm != "batch":
        yield f"key views are not shuffled: encoder.norm={recipe.encoder.norm} mixes no images"
    keys, width = options.queue.keys, options.head.width
    yield (
        f"queue of {keys:,} keys, {keys // world:,} a rank ({queue_bytes(recipe) / world / 1e6:,.1f} MB), "
        f"{path(device, DTYPES[recipe.precision], width)} attention"
    )
    if images is not None and keys // directions >= images:
        yield (
            f"warning: queue.keys={keys:,} is not below the {images:,} training images: an image's own older "
            "key is among its negatives"
        )
    if blocks_span_ranks(recipe, world):
        key = f"{contrast_key(recipe.objective)}shuffle"
        yield (
            f"blocks of {key}={options.shuffle} groups span ranks: the key views of other ranks' samples are "
            "read and decoded a second time"
        )


PIXELS = 3 * 64 * 64  # numbers of an image: ImageNet's at 224 px would be 771 GB of features


def check_evaluation(recipe: Pretrain, dataset: Dataset) -> None:
    """Whether what the run will be asked for at its end can be measured on this data.

    The online monitor asks for the splits alone: without labels it leaves out the kNN.

    Raises:
        UserError: the split `data.labelled` is not there; or there are no classes, a split has no label, or
            too few images to re-estimate batch-norm.
    """
    dataset.split(labelled_split(recipe))
    if recipe.evaluate.at_end:
        check_labels(recipe, recipe.evaluate, dataset, "leave the probes out with evaluate.at_end=false")


def check_labels(recipe: Pretrain, options: Evaluate, dataset: Dataset, way_out: str) -> None:
    """Raises UserError as `check` does; `way_out` ends a line about missing labels."""
    if not dataset.classes:
        raise UserError(f"{dataset.where} has no classes, and probes learn to tell them; {way_out}")
    for key, split in (("data.labelled", labelled_split(recipe)), ("data.test", recipe.data.test)):
        reader = Reader(dataset, split)
        if not has_labels(reader):
            raise UserError(
                f"{dataset.where}: no image of '{split}' ({key}) has a label, and probes need them; {way_out}"
            )
        reader.close()
    if (options.controls or options.recalibrate) and options.online_images < 2:
        raise UserError(
            f"evaluate.online_images={options.online_images}: batch-norm is re-estimated on them and needs 2 "
            "at least; raise it, or set evaluate.controls=false and evaluate.recalibrate=false"
        )


def check_disk(recipe: Pretrain, dataset: Dataset, widths: dict[str, int], outputs: Path) -> None:
    """Raises UserError where the features to be probed at the end, of these widths, find no room."""
    if not recipe.evaluate.at_end:
        return
    width = max(sum(widths.values()), recipe.evaluate.controls * compared_pixels(recipe))
    images = dataset.split(labelled_split(recipe)).images
    there = next(path for path in (outputs, *outputs.absolute().parents) if path.exists())
    check_room(there, images, width)


def compared_pixels(recipe: Pretrain) -> int:
    """How many numbers of an image are probed as a control; of a large image none are."""
    numbers = 3 * recipe.data.size**2
    return numbers if numbers <= PIXELS else 0


def labelled_split(recipe: Pretrain) -> str:
    """The split that probes learn from."""
    return recipe.data.labelled or recipe.data.train


def open_data(options: Data, commands: bool = False) -> Dataset:
    """The data set; the embedded digits are made on first use. `commands`: its root may start programs.

    Raises:
        UserError: it is not there; the message says how to make it.
    """

    def opened() -> Dataset:
        folder = local_folder(options.root)
        if options.source == "digits" and folder and not (folder / "dataset.json").exists():
            print(f"making {folder} of the digits that scikit-learn has", flush=True)
            make(options.source, folder)
        return load_dataset(options.root, options.source, options.access(commands))

    return collectives.run_on_main(opened)


def check_finished(folder: RunFolder, options: Data, commands: bool) -> None:
    """Looks whether a finished run was trained on what `options.root` is now, where that can be told.

    Raises:
        UserError: it was another data set.
    """
    now = then = None
    with suppress(UserError, Damaged, IndexError):  # no data, or no checkpoint, any more
        newest = folder_name(kept(folder.checkpoints)[-1])
        then = read_manifest(folder.checkpoints / newest)["data"]
        access = replace(options.access(commands), patience=0.0)
        now = load_dataset(options.root, options.source, access).fingerprint
    if now and then != now:
        raise UserError(
            f"{folder.path} is finished, and the data set in {options.root} is not the one it was trained "
            "on; start another with run=NAME, or give that one"
        )
