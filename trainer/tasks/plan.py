"""`--plan`: what a recipe will do and cost, before anything runs."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import torch

from data_pipelines.common.errors import UserError
from trainer.networks.encoder import Encoder
from trainer.recipe.automatic import AUTO, automatic_keys
from trainer.recipe.loading import ResolvedRecipe
from trainer.recipe.recipes import AnyTraining
from trainer.recipe.schema import Pretrain
from trainer.recipe.training_recipe import TrainingRecipe
from trainer.recipe.trees import flatten
from trainer.recipe.yaml12 import to_yaml_line
from trainer.runs import automatic
from trainer.tasks import cluster_plan, diffusion_plan
from trainer.tasks.activations import saved_bytes
from trainer.tasks.checks import check_evaluation, check_splits
from trainer.tasks.cluster_plan import Cluster
from trainer.tasks.plan_parts import Planned, describe_data, look_at, megabytes, planned_split, stored
from trainer.tasks.preflight import notes
from trainer.tasks.resources import sizes_of
from trainer.training.build import build_objective
from trainer.training.data import DTYPES
from trainer.training.groups import blocks_span_ranks, check_batch_division
from trainer.training.schedules import whole_batches

WORLDS = (1, 2, 3, 4, 8, 16, 32, 64)


def run(loaded: ResolvedRecipe, cluster: Cluster | None = None) -> int:
    """Prints the plan of a recipe that trains, on a cluster where one is asked about; the exit status.

    Raises:
        UserError: the recipe is of another task, its parts do not fit together, or the data set, where it is
            there already, lacks a split or what probes need.
    """
    recipe = loaded.recipe
    if not recipe.trains:
        raise UserError(f"--plan: recipe {loaded.name} is of task {recipe.task}; only training is planned")
    check_batch_division(recipe, 1)
    keys, device = automatic_keys(recipe), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = automatic.resolved(loaded, device)
    recipe = loaded.recipe
    if recipe.task == "diffuse":
        what = diffusion_plan.planned(recipe, loaded.commands)
    else:
        what = planned(recipe, loaded.commands)
    total, unit = whole_batches(recipe.images, recipe.batch), recipe.groups.indivisible_images
    print(f"recipe     {loaded.name}, run {recipe.folder(loaded.name)}")
    for line in (*what.samples, *what.model):
        print(line)
    done = automatic.resolved(loaded, device, what.split)
    for key, value in flatten(done.resolved()):
        if key in keys and value != AUTO:
            print(f"auto       {key}={to_yaml_line(value)}: {done.origin[key]}")
    print(f"optimizer  {recipe.optimizer.kind}")
    print(f"training   {total:,} images = {total // recipe.batch:,} steps of {recipe.batch}")
    if what.count:
        epoch = f"{what.count:,} {what.unit} an epoch = {what.count / recipe.batch:.1f} steps"
        print(f"           {epoch}; {total / what.count:.1f} epochs")
    every, kept = recipe.save.every, f"{recipe.save.keep} kept"
    if recipe.save.keep_every:
        kept += f", and of each {recipe.save.keep_every:,} images the first"
    print(f"           a checkpoint every {every:,} images ({total // every:,} times, {kept})")
    known = notes(recipe, what.count, 1, torch.device("cpu"))
    for line in (*(f"warning: {line}" for line in what.warnings), *known):
        print(f"           {line}")
    if cluster:
        for line in cluster_lines(recipe, cluster, what):
            print(line)
        return 0
    for world in WORLDS:
        with suppress(UserError):
            check_batch_division(recipe, world)
            print(describe_ranks(recipe, what.stored, world, unit))
    return 0


def cluster_lines(recipe: AnyTraining, cluster: Cluster, what: Planned) -> Iterator[str]:
    """The plan on a cluster. Raises UserError: the batch does not divide; what would is named."""
    check_batch_division(recipe, cluster.ranks)
    objective = what.build().train()
    sizes = sizes_of(recipe, objective)
    images = recipe.batch // cluster.ranks // recipe.accumulate
    activations = saved_bytes(recipe, objective, what.views, images)
    traffic = cluster_plan.traffic_of(recipe, objective, sizes, cluster.ranks)
    return cluster_plan.lines(recipe, cluster, sizes, traffic, activations, what.stored, what.count)


def planned(recipe: Pretrain, commands: bool) -> Planned:
    """The images and the encoder of a pretraining recipe. Raises UserError as `run`."""
    dataset, missing = look_at(recipe.data, commands)
    views: list[tuple[int, ...]] = [(3, recipe.data.size, recipe.data.size)] * len(recipe.data.views)
    made = partial(build_objective, recipe), views
    if dataset is None:
        return Planned([f"data       {missing}"], describe_model(recipe), *made)
    warnings = []
    check_splits(recipe, dataset)
    if dataset.remote is None or not dataset.classes:  # else every index would be fetched
        warnings = check_evaluation(recipe, dataset)
    lines, train = [f"data       {describe_data(recipe.data, dataset)}"], recipe.data.train
    images, size, model = dataset.split(train).images, stored(dataset, train), describe_model(recipe)
    split = planned_split(dataset, recipe.data)
    return Planned(lines, model, *made, count=images, stored=size, warnings=warnings, split=split)


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


def describe_ranks(recipe: TrainingRecipe, size: int | None, world: int, unit: int) -> str:
    """What each of `world` ranks computes and reads, of an epoch of `size` bytes at rest."""
    images = recipe.batch // world
    line = f"{f'{world} rank' + 's' * (world > 1):<10} {images} images a step = {images // unit} x {unit}"
    if recipe.accumulate > 1:
        line += f" in {recipe.accumulate} micro-batches"
    if size is not None:
        spans = blocks_span_ranks(recipe, world)
        line += f"; each reads {megabytes((1 + spans) * size / world)} an epoch"
        line += ", its key views apart" if spans else ""
    return line
