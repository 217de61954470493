"""Schedules as functions of images seen."""

import math

from trainer.recipe.schema import Pretrain


def learning_rate(recipe: Pretrain, images_seen: int) -> float:
    """The learning rate of the step that begins when `images_seen` images have been seen."""
    schedule, factor = recipe.schedule, 1.0
    if schedule.kind == "cosine":
        progress = (images_seen - schedule.warmup) / max(1, recipe.images - schedule.warmup)
        wave = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
        factor = schedule.final + (1 - schedule.final) * wave
    if images_seen < schedule.warmup:  # the first step already learns
        factor = min(1.0, (images_seen + recipe.batch) / schedule.warmup)
    return recipe.optimizer.rate(recipe.batch) * factor


def interval_passed(every: int, before: int, after: int) -> bool:
    """Whether a multiple of `every` images was passed on the way from `before` to `after`; 0 is never."""
    return every > 0 and before // every != after // every


def whole_batches(images: int, batch: int) -> int:
    """The images of a run: its length rounded up to whole global batches."""
    return -(-images // batch) * batch
