"""Schedules as functions of images seen."""

from trainer.recipe.training_recipe import TrainingRecipe


def learning_rate(recipe: TrainingRecipe, images_seen: int) -> float:
    """The learning rate of the step that begins when `images_seen` images have been seen."""
    schedule = recipe.schedule
    if images_seen < schedule.warmup:  # the first step already learns
        factor = min(1.0, (images_seen + recipe.batch) / schedule.warmup)
    else:
        factor = schedule.factor(images_seen, recipe.images)
    return recipe.optimizer.rate(recipe.batch) * factor


def interval_passed(every: int, before: int, after: int) -> bool:
    """Whether a multiple of `every` images was passed on the way from `before` to `after`; 0 is never."""
    return every > 0 and before // every != after // every


def whole_batches(images: int, batch: int) -> int:
    """The images of a run: its length rounded up to whole global batches."""
    return -(-images // batch) * batch
