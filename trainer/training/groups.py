"""Groups of images of the global batch, and how ranks share them."""

import math

from data_pipelines.plan import check_division
from data_pipelines.views import Shuffle
from trainer.recipe.objectives import MocoObjective, contrast_key, contrastive
from trainer.recipe.schema import Pretrain


def key_shuffle(recipe: Pretrain) -> Shuffle | None:
    """Of which views batch-norm's groups are shuffled: those that keys are made of (ShuffleBN)."""
    options = contrastive(recipe.objective)
    if not isinstance(options, MocoObjective) or recipe.encoder.norm != "batch":
        return None
    return Shuffle(views=(1,), group=recipe.groups.norm, groups=options.shuffle)


def blocks_span_ranks(recipe: Pretrain, world: int) -> bool:
    """Whether key views belong to other ranks' samples, so that they are read and decoded a second time."""
    shuffle = key_shuffle(recipe)
    return shuffle is not None and recipe.batch // world % (shuffle.group * shuffle.groups) > 0


def check_batch_division(recipe: Pretrain, world: int) -> None:
    """Whether every rank and micro-batch gets whole groups, and batch and micro-batches whole blocks of them.

    Raises:
        UserError: naming what works.
    """
    if shuffle := key_shuffle(recipe):
        block = shuffle.group * shuffle.groups
        key = f"{contrast_key(recipe.objective)}shuffle"
        what = f"{key}={shuffle.groups} groups of groups.norm={shuffle.group}"
        # Micro-batches of other ranks are not there to travel from; nor is the first view a key as well.
        inside = recipe.accumulate > 1 or contrastive(recipe.objective).symmetric
        parts = world * recipe.accumulate
        held = recipe.batch // (parts if inside else 1) // shuffle.group  # groups that blocks are made of
        whole = recipe.batch % (parts * shuffle.group) == 0
        fewer = [n for n in range(2, min(shuffle.groups, 1024)) if whole and held % n == 0]
        ways = [f"{key}={fewer[-1]}"] if fewer else []
        check_division(recipe.batch, 1, 1, block, what, ways)
        if inside:
            check_division(recipe.batch, world, recipe.accumulate, block, what, ways)
    check_division(recipe.batch, world, recipe.accumulate, indivisible_images(recipe), "groups")


def negatives(recipe: Pretrain) -> int | None:
    """Images that are each other's negatives; None: all of the batch."""
    chosen = recipe.groups.negatives or recipe.groups.norm
    return None if chosen == "global" else chosen


def indivisible_images(recipe: Pretrain) -> int:
    """The images that must stay on one rank: the least number of whole groups of every kind."""
    return math.lcm(recipe.groups.norm, negatives(recipe) or 1)


def heldout_batch(recipe: Pretrain) -> int:
    """The images of a batch in which information is estimated on held-out images.

    Whole groups of in-batch negatives; with a queue up to 256 images, which are each other's negatives.
    """
    unit = indivisible_images(recipe)
    if isinstance(contrastive(recipe.objective), MocoObjective):
        return max(1, min(recipe.batch, 256) // unit) * unit
    return unit
