"""`--plan`: what a recipe will do and cost, before anything runs."""

from contextlib import suppress

import torch

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Dataset, Split
from data_pipelines.dataset_loading import load_dataset
from trainer.networks.encoder import Encoder
from trainer.recipe.loading import ResolvedRecipe
from trainer.recipe.schema import Pretrain
from trainer.tasks.checks import check_evaluation, check_splits
from trainer.tasks.data_making import describe_making, folder_to_make
from trainer.tasks.preflight import notes
from trainer.tasks.resources import sizes_of
from trainer.training.build import build_objective
from trainer.training.data import DTYPES
from trainer.training.groups import blocks_span_ranks, check_batch_division
from trainer.training.schedules import whole_batches

WORLDS = (1, 2, 3, 4, 8, 16, 32, 64)


def run(loaded: ResolvedRecipe) -> int:
    """Prints the plan of a pretraining recipe; the process's exit status.

    Raises:
        UserError: the recipe is of another task, its parts do not fit together, or the data set, where it is
            there already, lacks a split or what probes need.
    """
    recipe = loaded.recipe
    if not recipe.trains:
        raise UserError(f"--plan: recipe {loaded.name} is of task {recipe.task}; only training is planned")
    dataset: Dataset | None
    try:
        access = recipe.data.access(loaded.commands)
        dataset, missing = load_dataset(recipe.data.root, recipe.data.source, access), ""
    except UserError as error:
        dataset, missing = None, str(error)
        if (folder := folder_to_make(recipe.data)) is not None:
            missing = f"not there: the run begins with {describe_making(folder, recipe.data)}"
    check_batch_division(recipe, 1)
    warnings = []
    if dataset:
        check_splits(recipe, dataset)
        if dataset.remote is None or not dataset.classes:  # else every index would be fetched
            warnings = check_evaluation(recipe, dataset)
    train = dataset.split(recipe.data.train) if dataset else None
    images = train.images if train else None
    total, unit = whole_batches(recipe.images, recipe.batch), recipe.groups.indivisible_images
    print(f"recipe     {loaded.name}, run {recipe.folder(loaded.name)}")
    print(f"data       {describe_data(recipe, dataset) if dataset else missing}")
    for line in describe_model(recipe):
        print(line)
    print(f"optimizer  {recipe.optimizer.kind}")
    print(f"training   {total:,} images = {total // recipe.batch:,} steps of {recipe.batch}")
    if images:
        epoch = f"{images:,} images an epoch = {images / recipe.batch:.1f} steps"
        print(f"           {epoch}; {total / images:.1f} epochs")
    every, kept = recipe.save.every, f"{recipe.save.keep} kept"
    if recipe.save.keep_every:
        kept += f", and of each {recipe.save.keep_every:,} images the first"
    print(f"           a checkpoint every {every:,} images ({total // every:,} times, {kept})")
    for line in (*(f"warning: {line}" for line in warnings), *notes(recipe, images, 1, torch.device("cpu"))):
        print(f"           {line}")
    for world in WORLDS:
        with suppress(UserError):
            check_batch_division(recipe, world)
            print(describe_ranks(recipe, train, world, unit))
    return 0


def describe_data(recipe: Pretrain, dataset: Dataset) -> str:
    train, test = dataset.split(recipe.data.train), dataset.split(recipe.data.test)
    return (
        f"{dataset.where} ({dataset.source}): "
        f"{train.images:,} training images in {len(train.shards)} shards, "
        f"{megabytes(sum(shard.bytes for shard in train.shards))}; {test.images:,} test images; "
        f"{len(dataset.classes)} classes"
    )


def describe_model(recipe: Pretrain) -> list[str]:
    """Parameters by part, and the memory that a rank holds beside activations."""
    with torch.device("meta"):
        objective = build_objective(recipe)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in objective.named_children()}
    counts = {name.replace("_", " "): size for name, size in sizes.items() if size}
    size, encoder = DTYPES[recipe.precision].itemsize, objective.encoder
    kept, state = sum(counts.values()), sizes_of(recipe, objective, encoder)
    latent = []
    if encoder.latent_size is not None:
        parts = (f"{name} {of_features(encoder, name)}" for name in ("y", "w"))
        latent = [f"latent     z of D = {encoder.latent_size:,} numbers: {', '.join(parts)}"]
    views = len(recipe.data.views) * recipe.batch // recipe.accumulate * 3 * recipe.data.size**2 * size
    return [
        "parameters "
        + "  ".join(f"{name} {count:,}" for name, count in counts.items())
        + f"  in all {kept:,}",
        *latent,
        f"memory     beside activations: parameters {megabytes(state.parameters)}, "
        f"gradients {megabytes(state.gradients)}, moments {megabytes(state.moments)}, "
        f"views of a batch {megabytes(views)}"
        + (f" and queue {megabytes(state.queue)}" if state.queue else "")
        + f" shared by the ranks; a checkpoint {megabytes(state.checkpoint)} on disk",
    ]


def of_features(encoder: Encoder, name: str) -> str:
    """How many numbers a feature has, and of which shape, where that is a map's."""
    width = encoder.widths[name]
    return " x ".join(map(str, encoder.maps.get(name, (f"{width:,}",))))


def describe_ranks(recipe: Pretrain, train: Split | None, world: int, unit: int) -> str:
    """What each of `world` ranks computes and reads."""
    images = recipe.batch // world
    line = f"{f'{world} rank' + 's' * (world > 1):<10} {images} images a step = {images // unit} x {unit}"
    if recipe.accumulate > 1:
        line += f" in {recipe.accumulate} micro-batches"
    if train:
        size = sum(shard.bytes for shard in train.shards)
        spans = blocks_span_ranks(recipe, world)
        line += f"; each reads {megabytes((1 + spans) * size / world)} an epoch"
        line += ", its key views apart" if spans else ""
    return line


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
