"""What a person should know of a recipe that its keys do not say outright: weights, rates, shares."""

from collections.abc import Iterator

import torch

from trainer import assembly
from trainer.momentum_queue import path
from trainer.recipe import Pretrain
from trainer.recipe_objectives import HybridObjective, MocoObjective, contrast_key, contrastive
from trainer.schedules import whole_batches


def queue_bytes(recipe: Pretrain) -> int:
    """Bytes of the whole momentum queue; 0 where the objective has none."""
    options = contrastive(recipe.objective)
    if not isinstance(options, MocoObjective):
        return 0
    storage = torch.bfloat16 if options.queue.bf16 else assembly.DTYPES[recipe.precision]
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
        f"{path(device, assembly.DTYPES[recipe.precision], width)} attention"
    )
    if images is not None and keys // directions >= images:
        yield (
            f"warning: queue.keys={keys:,} is not below the {images:,} training images: an image's own older "
            "key is among its negatives"
        )
    if assembly.blocks_span_ranks(recipe, world):
        key = f"{contrast_key(recipe.objective)}shuffle"
        yield (
            f"blocks of {key}={options.shuffle} groups span ranks: the key views of other ranks' samples are "
            "read and decoded a second time"
        )
