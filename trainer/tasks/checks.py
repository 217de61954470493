"""The checks that `preflight` lists: each looks at one thing that a run needs later.

A check returns lines about what the run does without. Where it could not be the run that was asked for, it
raises UserError, in one line.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Dataset
from data_pipelines.reader import Reader
from data_pipelines.shards.summary import more_test_images
from trainer.distributed.launch import DistributedContext
from trainer.evaluation.measure import compared_pixels
from trainer.evaluation.requirements import requirements
from trainer.objectives.objective import EncoderObjective
from trainer.recipe.evaluation import Evaluate
from trainer.recipe.schema import Data, Pretrain
from trainer.recipe.training_recipe import TrainingRecipe
from trainer.runs.folder import RunFolder
from trainer.tasks.resources import (
    Sizes,
    disk_left,
    disk_needed,
    memory_left,
    memory_needed,
    obstacle,
    sizes_of,
)
from trainer.tracking.address import uri_for
from trainer.training.build import build_objective
from trainer.training.groups import check_batch_division
from trainer.training.optimizers import check_engine
from trainer.training.schedules import whole_batches


@dataclass(frozen=True)
class Start:
    """A run that is about to start, in this folder."""

    recipe: Pretrain
    context: DistributedContext
    dataset: Dataset
    folder: Path

    @cached_property
    def objective(self) -> EncoderObjective:
        """What will be trained, on the device `meta`. Raises UserError: its parts do not fit together."""
        with torch.device("meta"):
            return build_objective(self.recipe)

    @cached_property
    def sizes(self) -> Sizes:
        return sizes_of(self.recipe, self.objective, self.objective.encoder)


def check_source(start: Start) -> Iterable[str]:
    """Refuses a data set that was made from another source than the recipe's."""
    if start.dataset.source != start.recipe.data.source:
        raise other_source(start.recipe.data, start.dataset)
    return ()


def other_source(data: Data, dataset: Dataset) -> UserError:
    """The mistake of a data set that was made from another source than the recipe's."""
    return UserError(
        f"data.root={data.root} was made from source={dataset.source}, the recipe says "
        f"data.source={data.source}; give the folder of that one, or change data.source"
    )


def check_ranks(start: Start) -> Iterable[str]:
    """Refuses ranks, groups, lanes that do not divide the batch, an optimizer that the engine cannot run."""
    check_training(start.recipe, start.context)
    return ()


def check_parts(start: Start) -> Iterable[str]:
    """Refuses an encoder, objective and views that do not fit together."""
    start.objective.sizes()
    return ()


def check_training(recipe: TrainingRecipe, context: DistributedContext) -> None:
    """Checks what every recipe that trains requires of its ranks.

    Raises:
        UserError: ranks and groups do not divide the batch, the engine cannot run the optimizer, or
            `tracking.uri` is no address.
    """
    check_batch_division(recipe, context.world_size)
    check_engine(recipe.optimizer, context.engine)
    uri_for(recipe.tracking.uri, Path(recipe.outputs))


def check_cache(start: Start) -> Iterable[str]:
    """Refuses a cache of a remote data set without room for a window of shards."""
    data = start.recipe.data
    for split in (data.train, data.test):
        with Reader(start.dataset, split) as reader:
            reader.check_room(data.window)
    return ()


def check_classes(start: Start) -> Iterable[str]:
    """Refuses a supervised term for another number of classes than the data set has."""
    recipe, dataset = start.recipe, start.dataset
    classes = recipe.objective.supervised_classes
    if classes is not None and classes != len(dataset.classes):
        raise UserError(
            f"{recipe.objective.contrast_key}supervised.classes={classes}, but {dataset.where} has "
            f"{len(dataset.classes)} classes; give that number"
        )
    return ()


def check_names(start: Start) -> Iterable[str]:
    """Refuses a split that is not in the data set, or is empty."""
    check_splits(start.recipe, start.dataset)
    return ()


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
                if again := more_test_images(dataset):
                    way_out += f", or {again}"
            raise UserError(f"data.{key}={name}: {error}; {way_out}") from None


def check_evaluation(recipe: Pretrain, dataset: Dataset) -> list[str]:
    """Whether what is measured of a run can be measured on this data; what cannot be, a line each.

    The online monitor needs the splits alone: without labels it leaves out the kNN.

    Raises:
        UserError: as `check_labels`, where probes are wanted; or the split `data.labelled` is not there.
    """
    dataset.split(recipe.labelled_split)
    if recipe.evaluate.at_end:
        return check_labels(
            recipe,
            recipe.evaluate,
            dataset,
            "leave the probes out with evaluate.at_end=false",
            online=recipe.evaluate.every > 0,
        )
    if not recipe.evaluate.every:
        return []
    return requirements(recipe, recipe.evaluate, dataset, final=False, online=True).warnings


def check_labels(
    recipe: Pretrain, options: Evaluate, dataset: Dataset, way_out: str, online: bool = False
) -> list[str]:
    """What of an evaluation the data's labels cannot give, a line each; `way_out` ends a refusal.

    Raises:
        UserError: there are no classes, or a key asks for what the data does not have.
    """
    if not dataset.classes:
        raise UserError(f"{dataset.where} has no classes, and probes learn to separate them; {way_out}")
    needs = requirements(recipe, options, dataset, online=online)
    if needs.without_labels:
        raise UserError(f"{needs.without_labels}; {way_out}")
    if needs.mistakes:
        raise UserError(needs.mistakes[0])
    return needs.warnings


def check_disk(start: Start) -> Iterable[str]:
    """Refuses a disk without room for checkpoints, the exported encoder and the features to be probed."""
    recipe, sizes = start.recipe, start.sizes
    images, widths = 0, start.objective.encoder.widths
    if recipe.evaluate.at_end:
        images = sum(start.dataset.split(name).images for name in (recipe.labelled_split, recipe.data.test))
    width = max(sum(widths.values()), recipe.evaluate.controls * compared_pixels(recipe))
    return check_disk_of(recipe, sizes, images, width, start.folder)


def check_disk_of(
    recipe: TrainingRecipe, sizes: Sizes, images: int, width: int, folder: Path
) -> Iterable[str]:
    """Refuses a disk without room for checkpoints and the features [images, width] to be probed."""
    needed, left = disk_needed(recipe, sizes, 4 * images * width), disk_left(folder)
    if needed > left:
        raise UserError(
            f"the run needs {readable(needed)} of disk (save.keep={recipe.save.keep} checkpoints of "
            f"{readable(sizes.checkpoint)}, and one more that is written or the features of {images:,} "
            f"images to probe), and {folder} has {readable(left)} left; make room there, choose "
            "another folder with outputs=, keep fewer, or probe a smaller split with data.labelled or none "
            "with evaluate.at_end=false"
        )
    checkpoints = folder / "checkpoints"
    if why := obstacle(checkpoints):
        raise UserError(f"{checkpoints} cannot be written: {why}; mend it, or give another outputs= or run=")
    if every := recipe.save.keep_every:
        kept = whole_batches(recipe.images, recipe.batch) // every
        size = kept * sizes.checkpoint
        if needed + size > left:
            return [
                f"save.keep_every={every}: the {kept:,} checkpoints that it keeps take {readable(size)}, "
                f"and {folder} has {readable(left)} left"
            ]
    return ()


def check_memory(start: Start) -> Iterable[str]:
    """Refuses a machine, control group, `ulimit` or GPU whose memory cannot even hold what is trained."""
    check_memory_of(start.sizes, start.context)
    return ()


def check_memory_of(sizes: Sizes, context: DistributedContext) -> None:
    """Raises UserError: the memory cannot even hold what is trained."""
    needed, (left, what) = memory_needed(sizes, context), memory_left(context)
    if needed > left:
        raise UserError(
            f"weights, gradients, moments and the copy of a checkpoint take {readable(needed)} of memory a "
            f"rank, and {what} has {readable(left)} left; train a smaller network, fewer ranks on a "
            "machine, or shard it (recipes/launch/zero2.yaml)"
        )


def check_probes(start: Start) -> Iterable[str]:
    """Refuses keys that ask for labels that are not there; lists what of the probes is left out."""
    return check_evaluation(start.recipe, start.dataset)


def check_pictures(start: Start) -> Iterable[str]:
    """Lists pictures that cannot be written: they never cost a run."""
    why = obstacle(start.folder / "figures")
    return [f"figures/…: left out, {why}"] if why else ()


def check_exports(start: Start) -> Iterable[str]:
    """Refuses a folder that the encoder cannot be exported to."""
    file = RunFolder(start.folder).encoder
    why = obstacle(file.parent) or (f"{file} is a folder" if file.is_dir() else None)
    if why:
        raise UserError(f"{file} cannot be written: {why}; remove it, or give another outputs= or run=")
    return ()


def readable(size: float) -> str:
    """Bytes for a line on the screen."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
