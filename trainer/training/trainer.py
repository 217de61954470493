"""One training step, and all that it needs, on any number of ranks.

The trainer knows objectives, engines and data by their contracts alone, so any recipe that trains can use it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor

from data_pipelines.plan import BatchShare
from trainer.checkpoints.state import StateValue
from trainer.distributed import collectives
from trainer.distributed.launch import DistributedContext
from trainer.engines.build import open_engine
from trainer.objectives.objective import Trained, Values
from trainer.recipe.training_recipe import TrainingRecipe
from trainer.training.data import TrainingData
from trainer.training.optimizers import build_optimizer
from trainer.training.schedules import learning_rate, whole_batches

Recipe = TypeVar("Recipe", bound=TrainingRecipe)
Data = TypeVar("Data", bound=TrainingData)


class Trainer(Generic[Recipe, Data, Trained]):
    """An objective on an engine, its data, and the number of images seen.

    Args:
        recipe: any recipe that trains; its batch divides into whole groups over ranks and micro-batches
            (`groups.check_batch_division`).
        context: this process among the ranks.
        objective: on the device, with its first weights.
        data: what it is trained on; closed with the trainer.
        saved: what `state` returned in a run of this recipe after `images` images: whole tensors (under
            `shard/` this rank's rows), whatever engine and ranks it ran on; None for a new run.

    Attributes:
        images: images seen by all ranks, the run's progress.
        total: images of the whole run, a multiple of the batch.
        on_stage: called with each stage of a step that has ended, and the images seen before that step.
    """

    def __init__(
        self,
        recipe: Recipe,
        context: DistributedContext,
        objective: Trained,
        data: Data,
        saved: Mapping[str, Tensor] | None = None,
        images: int = 0,
    ):
        self.recipe, self.context, self.data, self.images = recipe, context, data, images
        self.total = whole_batches(recipe.images, recipe.batch)
        self.sizes = objective.sizes()
        self.engine = open_engine(
            context,
            objective,
            lambda parameters: build_optimizer(recipe.optimizer, learning_rate(recipe, images), parameters),
            recipe.precision,
            saved,
        )
        self.objective, self.optimizer = self.engine.objective, self.engine.optimizer
        self.finite = torch.ones((), dtype=torch.bool, device=context.device)
        self.on_stage: Callable[[str, int], None] = lambda stage, images: None
        share = BatchShare(
            recipe.batch, context.rank, context.world_size, recipe.accumulate, recipe.key_shuffle
        )
        self.loader = data.loader(share, images, self.total)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of a step: the profiler shows it, and the watchdog learns when it has ended."""
        with torch.profiler.record_function(name):
            yield
        self.on_stage(name, self.images)

    def step(self) -> Values:
        """One optimizer step on the next global batch; the named scalars of this rank's share of it.

        Raises:
            Interrupted: the run was asked to stop while the first batch of the step cannot be read.
            UserError: data stays away, or cannot be decoded at all.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.images)
        with self.stage("zero_grad"):
            self.engine.zero_grad()
        parts = [self._micro_batch(micro) for micro in range(self.recipe.accumulate)]
        with self.stage("clip"):
            if self.recipe.optimizer.clip:
                self.engine.clip(self.recipe.optimizer.clip)
        with self.stage("step"):
            self.engine.step()
        with self.stage("after_step"):
            self.objective.after_step()
        self.images += self.recipe.batch
        values = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
        loss = values["loss"]
        assert isinstance(loss, Tensor)
        self.finite &= torch.isfinite(loss)  # read only when logging and saving: no wait here
        return values

    def _micro_batch(self, micro: int) -> Values:
        """Forward and backward pass of one micro-batch; its scalars without gradient."""
        with self.stage("data"):
            batch = next(self.loader)
        with self.engine.micro_batch(last=micro == self.recipe.accumulate - 1):
            with self.stage("forward"):
                values = self.engine.forward(batch)
            with self.stage("backward"):
                loss = values["loss"]
                assert isinstance(loss, Tensor)
                self.engine.backward(loss / self.recipe.accumulate)
        return {name: detached(value) for name, value in values.items()}

    def all_finite(self, weights_only: bool = False) -> bool:
        """Whether every loss so far was finite, and all that a checkpoint would hold is, on every rank.

        A finite loss can have a gradient, or a square of one, that is not. With `weights_only` that is looked
        for in the weights alone, which the next step reads.
        """
        finite = self.finite & self.engine.finite(self.context.device, weights_only)
        return collectives.all_reduce_mean(finite.double()).item() == 1.0

    def state(self) -> dict[str, StateValue]:
        """What a checkpoint holds; collective."""
        return self.engine.state()

    def unsharded(self) -> Trained:
        """The objective as it stands, with all parameters on every rank, for evaluation; collective."""
        return self.engine.unsharded()

    def close(self) -> None:
        self.loader.close()
        self.data.close()


def detached(value: Tensor | float) -> Tensor | float:
    return value.detach() if isinstance(value, torch.Tensor) else value
