"""One training step: trainer, optimizers, schedules, and what a recipe's parts are built from."""
