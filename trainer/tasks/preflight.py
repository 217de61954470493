"""What is looked at before a run starts: the data set, what cannot work, and what a person should know."""

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
from trainer.distributed.engine_kind import EngineKind
from trainer.distributed.launch import DistributedContext
from trainer.evaluation.features import check_room, has_labels
from trainer.evaluation.measure import compared_pixels
from trainer.objectives.momentum_queue import path
from trainer.recipe.evaluation import Evaluate
from trainer.recipe.schema import Data, Pretrain
from trainer.recipe.training_recipe import TrainingRecipe
from trainer.runs.folder import RunFolder
from trainer.tracking.address import uri_for
from trainer.training.build import build_objective
from trainer.training.data import DTYPES
from trainer.training.groups import blocks_span_ranks, check_batch_division
from trainer.training.optimizers import check_engine
from trainer.training.schedules import whole_batches

# ---- the data set ----------------------------------------------------------------------------------


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
    """Looks whether a finished run was trained on what `options.root` is now, where that is known.

    Raises:
        UserError: it was another data set.
    """
    now = then = None
    with suppress(UserError, Damaged, IndexError):  # no data, or no checkpoint, any more
        newest = folder_name(kept(folder.checkpoints)[-1])
        then = read_manifest(folder.checkpoints / newest)["data"]
        access = replace(options.access(commands), retry_seconds=0.0)
        now = load_dataset(options.root, options.source, access).fingerprint
    if now and then != now:
        raise UserError(
            f"{folder.path} is finished, and the data set in {options.root} is not the one it was trained "
            "on; start another with run=NAME, or give that one"
        )


# ---- what cannot work ------------------------------------------------------------------------------


def check(recipe: Pretrain, context: DistributedContext, dataset: Dataset) -> None:
    """Finds every mistake that can be found before anything is written.

    Raises:
        UserError: the data set is another source's, lacks a split or the labels that are needed, its cache
            or the disk for what is probed is too small, ranks and groups do not divide the batch, engine and
            optimizer or encoder, objective and data do not fit together, or `tracking.uri` is no address.
    """
    if dataset.source != recipe.data.source:
        raise UserError(
            f"data.root={recipe.data.root} was made from source={dataset.source}, the recipe says "
            f"data.source={recipe.data.source}; give the folder of that one, or change data.source"
        )
    check_training(recipe, context)
    check_splits(recipe, dataset)
    with torch.device("meta"):
        widths = build_objective(recipe).encoder.widths
    for split in (recipe.data.train, recipe.data.test):
        with Reader(dataset, split) as reader:
            reader.check_room(recipe.data.window)
    check_evaluation(recipe, dataset)
    check_disk(recipe, dataset, widths, Path(recipe.outputs))
    classes = recipe.objective.supervised_classes
    if classes is not None and classes != len(dataset.classes):
        raise UserError(
            f"{recipe.objective.contrast_key}supervised.classes={classes}, but {dataset.where} has "
            f"{len(dataset.classes)} classes; give that number"
        )


def check_splits(recipe: Pretrain, dataset: Dataset) -> None:
    """Raises UserError where a split that the recipe names is not in the data set, or is empty."""
    splits = {"train": recipe.data.train, "test": recipe.data.test, "labelled": recipe.labelled_split}
    for key, name in splits.items():
        try:
            dataset.split(name)
        except UserError as error:
            way_out = f"set data.{key} to one of its splits"
            if key == "test" and not set(dataset.splits) - set(recipe.data.train.split("+")):
                way_out = f"give data.test={recipe.data.train}, which measures on the images trained on"
                if dataset.source in ("folder", "wds"):
                    way_out += ", or make it again with test_percent=10: a tenth of the images becomes test"
            raise UserError(f"data.{key}={name}: {error}; {way_out}") from None


def check_training(recipe: TrainingRecipe, context: DistributedContext) -> None:
    """Checks what every recipe that trains requires of its ranks.

    Raises:
        UserError: ranks and groups do not divide the batch, the engine cannot run the optimizer, or
            `tracking.uri` is no address.
    """
    check_batch_division(recipe, context.world_size)
    check_engine(recipe.optimizer, context.engine)
    uri_for(recipe.tracking.uri, Path(recipe.outputs))


def check_evaluation(recipe: Pretrain, dataset: Dataset) -> None:
    """Whether what is measured at the end of the run can be measured on this data.

    The online monitor needs the splits alone: without labels it leaves out the kNN.

    Raises:
        UserError: the split `data.labelled` is not there; or there are no classes, a split has no label, or
            too few images to re-estimate batch-norm.
    """
    dataset.split(recipe.labelled_split)
    if recipe.evaluate.at_end:
        check_labels(recipe, recipe.evaluate, dataset, "leave the probes out with evaluate.at_end=false")


def check_labels(recipe: Pretrain, options: Evaluate, dataset: Dataset, way_out: str) -> None:
    """Raises UserError as `check` does; `way_out` ends a line about missing labels."""
    if not dataset.classes:
        raise UserError(f"{dataset.where} has no classes, and probes learn to separate them; {way_out}")
    for key, split in (("data.labelled", recipe.labelled_split), ("data.test", recipe.data.test)):
        with Reader(dataset, split) as reader:
            labelled = has_labels(reader)
        if not labelled:
            raise UserError(
                f"{dataset.where}: no image of '{split}' ({key}) has a label, and probes need them; {way_out}"
            )
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
    images = dataset.split(recipe.labelled_split).images
    there = next(path for path in (outputs, *outputs.absolute().parents) if path.exists())
    check_room(there, images, width)


# ---- what a person should know ---------------------------------------------------------------------


def queue_bytes(recipe: TrainingRecipe) -> int:
    """Bytes of the whole momentum queue; 0 where the objective has none."""
    queue = recipe.objective.momentum_queue
    if queue is None:
        return 0
    storage = torch.bfloat16 if queue.bf16 else DTYPES[recipe.precision]
    return queue.keys * recipe.objective.key_width * storage.itemsize


def notes(
    recipe: TrainingRecipe,
    images: int | None,
    world_size: int,
    device: torch.device,
    engine: EngineKind = EngineKind.SINGLE_PROCESS,
) -> Iterator[str]:
    """Lines about a run on so many ranks and a training split of so many images (None: not known)."""
    yield recipe.optimizer.describe_rate(recipe.batch)
    if recipe.precision == "float64" and engine.is_zero:
        yield "warning: DeepSpeed keeps weights and moments in float32; under ddp and fsdp2 all is float64"
    if recipe.schedule.warmup >= recipe.images:
        yield (
            f"warning: schedule.warmup={recipe.schedule.warmup:,} is as long as the run of {recipe.images:,} "
            f"images: that learning rate is never reached; set schedule.warmup={recipe.images // 10}, or less"
        )
    steps = whole_batches(recipe.images, recipe.batch) // recipe.batch
    if recipe.profile and steps < recipe.profile + 10:
        yield (
            f"warning: profile={recipe.profile} writes nothing: it needs ten steps before, and the run has "
            f"{steps} in all"
        )
    yield from recipe.advice(images)
    if momentum_queue := recipe.objective.momentum_queue:
        keys, queue = momentum_queue.keys, queue_bytes(recipe)
        kernel = path(device, DTYPES[recipe.precision], recipe.objective.key_width)
        yield (
            f"queue of {keys:,} keys, {keys // world_size:,} a rank ({queue / world_size / 1e6:,.1f} MB), "
            f"{kernel} attention"
        )
    if (shuffle := recipe.key_shuffle) and blocks_span_ranks(recipe, world_size):
        yield (
            f"blocks of {recipe.objective.contrast_key}shuffle={shuffle.groups} groups span "
            "ranks: the key views of other ranks' samples are read and decoded a second time"
        )
