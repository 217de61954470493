"""What is trained and how one step goes, on any number of ranks."""

from collections.abc import Callable

import torch
from torch import nn

from data_pipelines.dali import ImageViews
from data_pipelines.dataset import Dataset
from data_pipelines.image_options import ImageOptions
from data_pipelines.loader import Loader
from data_pipelines.plan import BatchShare, Plan
from data_pipelines.reader import Reader
from trainer.checkpoints.state import StateValue
from trainer.distributed import collectives
from trainer.distributed.launch import DistributedContext
from trainer.engines.build import open_engine
from trainer.recipe.schema import Pretrain
from trainer.training.build import DTYPES, build_objective
from trainer.training.groups import key_shuffle
from trainer.training.optimizers import build_optimizer
from trainer.training.schedules import learning_rate, whole_batches


class Trainer:
    """Everything that a step needs, from a recipe and, to go on, a collected state.

    Args:
        saved: what `state` gave in a run of this recipe after `images` images, whole tensors (under `shard/`
            this rank's rows), whatever engine and ranks it ran on; None starts anew.
        warn: takes a line about an image that was replaced, or a shard that cannot be read for a while.
        stopping: whether the run was told to stop: `step` then raises Interrupted where no shard can be read.

    The batch must divide into whole groups over ranks and micro-batches (`plan.check_division`).
    """

    def __init__(
        self,
        recipe: Pretrain,
        context: DistributedContext,
        dataset: Dataset,
        saved=None,
        images=0,
        warn=print,
        stopping=lambda: False,
    ):
        self.recipe, self.context, self.images = recipe, context, images
        self.total = whole_batches(recipe.images, recipe.batch)
        objective = build_objective(recipe).to(context.device)
        self.sizes = {"parameters": size(objective), "encoder parameters": size(objective.encoder)}
        self.engine = open_engine(
            context,
            objective,
            lambda parameters: build_optimizer(recipe.optimizer, learning_rate(recipe, images), parameters),
            recipe.precision,
            saved,
        )
        self.objective, self.optimizer = self.engine.objective, self.engine.optimizer
        self.finite = torch.ones((), dtype=torch.bool, device=context.device)
        self.finished: Callable[[str, int], None] = lambda stage, images: None  # told of the stages of a step

        self.reader = Reader(dataset, recipe.data.train, stopping)
        self.image_options = ImageOptions(
            recipe.data.size,
            recipe.data.normalize,
            recipe.data.threads,
            context.device,
            DTYPES[recipe.precision],
            recipe.data.decode,
        )
        self.plan = Plan(recipe.seed, self.reader.shards, recipe.data.window)
        share = BatchShare(
            recipe.batch, context.rank, context.world_size, recipe.accumulate, key_shuffle(recipe)
        )
        views = recipe.data.views
        maker = ImageViews(
            self.reader,
            self.image_options,
            views,
            share.sources(len(views)),
            recipe.seed,
            share.micro_batch,
            warn,
        )
        self.loader = Loader(
            maker, self.plan, share, start=images, stop=self.total, prefetch=recipe.data.prefetch
        )

    def step(self) -> dict[str, torch.Tensor | float]:
        """One optimizer step on the next global batch; the named scalars of this rank's share of it."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.images)
        self.engine.zero_grad()
        self.finished("zero_grad", self.images)
        parts = []
        for micro in range(self.recipe.accumulate):
            batch = next(self.loader)
            self.finished("data", self.images)
            with self.engine.micro_batch(last=micro == self.recipe.accumulate - 1):
                values = self.engine.forward(batch)
                self.finished("forward", self.images)
                self.engine.backward(values["loss"] / self.recipe.accumulate)
                self.finished("backward", self.images)
            parts.append({name: detached(value) for name, value in values.items()})
        if self.recipe.optimizer.clip:
            self.engine.clip(self.recipe.optimizer.clip)
        self.finished("clip", self.images)
        self.engine.step()
        self.finished("step", self.images)
        self.objective.after_step()
        self.finished("after_step", self.images)
        self.images += self.recipe.batch
        values = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
        self.finite &= torch.isfinite(values["loss"])  # read only when logging and saving: no wait here
        return values

    def all_finite(self) -> bool:
        """Whether every loss so far was finite, and all that a checkpoint would hold is, on every rank.

        A finite loss can have a gradient, or a square of one, that is not.
        """
        finite = self.finite & self.engine.finite()
        return collectives.all_reduce_mean(finite.double()).item() == 1.0

    def state(self) -> dict[str, StateValue]:
        """What a checkpoint holds; collective."""
        return self.engine.state()

    def unsharded(self) -> nn.Module:
        """The objective as it stands, with all parameters on every rank, for evaluation; collective."""
        return self.engine.unsharded()

    def close(self) -> None:
        self.loader.close()
        self.reader.close()


def size(module: nn.Module) -> int:
    """The number of parameters; of those that are not sharded."""
    return sum(parameter.numel() for parameter in module.parameters())


def detached(value):
    return value.detach() if isinstance(value, torch.Tensor) else value
