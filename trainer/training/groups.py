"""How ranks and micro-batches share the groups of a global batch."""

from data_pipelines.common.errors import UserError
from data_pipelines.plan import Lanes, check_division
from trainer.recipe.schema import Data
from trainer.recipe.training_recipe import TrainingRecipe


def blocks_span_ranks(recipe: TrainingRecipe, world_size: int) -> bool:
    """Whether key views belong to other ranks' samples, so that they are read and decoded a second time."""
    shuffle = recipe.key_shuffle
    return shuffle is not None and recipe.batch // world_size % (shuffle.group * shuffle.groups) > 0


def check_batch_division(recipe: TrainingRecipe, world_size: int) -> None:
    """Checks that every rank and micro-batch has whole groups, that shuffled blocks and lanes are whole.

    Raises:
        UserError: naming what works.
    """
    if shuffle := recipe.key_shuffle:
        block = shuffle.group * shuffle.groups
        key = f"{recipe.objective.contrast_key}shuffle"
        what = f"{key}={shuffle.groups} groups of groups.norm={shuffle.group}"
        # Keys of other micro-batches do not exist yet; and where both views are keys, images do not travel.
        inside = recipe.accumulate > 1 or recipe.objective.directions > 1
        parts = world_size * recipe.accumulate
        groups = recipe.batch // (parts if inside else 1) // shuffle.group  # that blocks are made of
        whole = recipe.batch % (parts * shuffle.group) == 0
        fewer = [n for n in range(2, min(shuffle.groups, 1024)) if whole and groups % n == 0]
        ways = [f"{key}={fewer[-1]}"] if fewer else []
        check_division(recipe.batch, 1, 1, block, what, ways)
        if inside:
            check_division(recipe.batch, world_size, recipe.accumulate, block, what, ways)
    unit = recipe.groups.indivisible_images
    check_division(recipe.batch, world_size, recipe.accumulate, unit, "groups")
    if recipe.data is not None:
        lanes_of(recipe.batch, recipe.data)


def lanes_of(batch: int, data: Data) -> Lanes | None:
    """The lanes of a recipe's batches, None for a single one.

    Raises:
        UserError: they do not divide the batch, or are more than a window's shards.
    """
    if batch % data.lanes:
        near = [n for n in range(1, batch + 1) if batch % n == 0 and n <= data.window]
        raise UserError(
            f"data.lanes={data.lanes} does not divide batch={batch}; what works: {', '.join(map(str, near))}"
        )
    if data.lanes > data.window:
        raise UserError(
            f"data.lanes={data.lanes} takes a shard each of data.window={data.window}: "
            f"give data.window={data.lanes} or more"
        )
    return Lanes(batch, data.lanes) if data.lanes > 1 else None
