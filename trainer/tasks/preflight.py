"""What is looked at before a run starts: the data set, what cannot work, and what a person should know."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Dataset
from data_pipelines.dataset_loading import load_dataset
from trainer.checkpoints.format import Damaged, folder_name, read_manifest
from trainer.checkpoints.load import kept
from trainer.distributed.engine_kind import EngineKind
from trainer.distributed.launch import DistributedContext
from trainer.networks.grouped_statistics import fault_of_kernels
from trainer.objectives.queue_attention import fault_of_fused, path
from trainer.recipe.schema import Data, Pretrain
from trainer.recipe.training_recipe import TrainingRecipe
from trainer.runs.folder import RunFolder
from trainer.tasks import checks
from trainer.tasks.checks import Start
from trainer.tasks.resources import queue_bytes
from trainer.training.data import DTYPES
from trainer.training.groups import blocks_span_ranks
from trainer.training.schedules import whole_batches

# ---- the data set ----------------------------------------------------------------------------------


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


# ---- what is looked at before the first step -------------------------------------------------------

# What a run needs later. A check returns lines about what the run does without, and raises UserError where
# the run could not be what was asked for. Others refuse the rest before the first step: packages that cannot
# be imported, as matplotlib for pictures (`trainer.main`); a folder of another run or process (`runs.run`).
CHECKS: dict[str, Callable[[Start], Iterable[str]]] = {
    "data": checks.check_source,
    "ranks": checks.check_ranks,
    "splits": checks.check_names,
    "objective": checks.check_parts,
    "cache": checks.check_cache,
    "labels and probes": checks.check_probes,
    "classes": checks.check_classes,
    "disk": checks.check_disk,
    "memory": checks.check_memory,
    "pictures": checks.check_pictures,
    "exports": checks.check_exports,
}


def check(
    recipe: Pretrain, context: DistributedContext, dataset: Dataset, folder: Path | None = None
) -> list[str]:
    """Finds every mistake that can be found before anything is written: all `CHECKS`, in their order.

    Args:
        folder: of the run; None: that of all runs.

    Returns:
        What the run does without, and what a person should know: a line each.

    Raises:
        UserError: what a check refuses, in its words.
    """
    start = Start(recipe, context, dataset, folder or Path(recipe.outputs))
    return [line for look in CHECKS.values() for line in look(start)]


# ---- what a person should know ---------------------------------------------------------------------


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
    if recipe.objective.uses_batch_negatives and images is not None and images < recipe.batch:
        yield from _repeated_negatives(recipe, images)
    if momentum_queue := recipe.objective.momentum_queue:
        keys, queue = momentum_queue.keys, queue_bytes(recipe)
        computed = device, DTYPES[recipe.precision], recipe.objective.key_width
        kernel = path(*computed)
        yield (
            f"queue of {keys:,} keys, {keys // world_size:,} a rank ({queue / world_size / 1e6:,.1f} MB), "
            f"{kernel} attention"
        )
        if fault := fault_of_fused(*computed):
            yield (
                f"warning: torch's fused attention {fault} on this device: the queue takes plain products, "
                "which are right but slower"
            )
    if fault := fault_of_kernels(device):
        yield (
            f"warning: batch-norm's kernels {fault} on this device: torch's operations take their place, "
            "which are right but slower"
        )
    if (shuffle := recipe.key_shuffle) and blocks_span_ranks(recipe, world_size):
        yield (
            f"blocks of {recipe.objective.contrast_key}shuffle={shuffle.groups} groups span "
            "ranks: the key views of other ranks' samples are read and decoded a second time"
        )


def _repeated_negatives(recipe: TrainingRecipe, images: int) -> Iterator[str]:
    """A line where groups of negatives hold an image twice, in a batch of more than one epoch."""
    negatives = recipe.groups.negative_images or recipe.batch
    if images % negatives == 0:  # no group runs into the next epoch
        return
    groups, way_out = f"groups of {negatives:,}", ""
    if negatives <= images:
        groups += " that run into the next epoch"
    else:
        norm = recipe.groups.norm  # which a smaller group divides
        fitting = [size for size in range(2, min(norm, images) + 1) if norm % size == 0]
        if fitting:
            way_out = f"; set groups.negatives={fitting[-1]}"
            way_out += ": then only groups that run into the next epoch do" * bool(images % fitting[-1])
    yield (
        f"warning: {images:,} training images, fewer than a batch of {recipe.batch:,}: {groups} hold an "
        f"image more than once, so that it is a negative of itself{way_out}"
    )
