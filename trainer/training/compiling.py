"""torch.compile of the networks of a step; where the compiler fails, the plain network computes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainer.distributed.engine_kind import EngineKind
from trainer.objectives.objective import Objective
from trainer.recipe.training_recipe import TrainingRecipe

Warn = Callable[[str], None]
BACKEND = "inductor"
SHARDING = (EngineKind.ZERO3, EngineKind.FSDP2)  # engines that gather each layer's weights while it computes
VARIANTS = (
    64  # of a network: its second call in a step adds to batch-norm's sums, where the first begins them
)


def compile_networks(recipe: TrainingRecipe, engine: EngineKind, objective: Objective, warn: Warn) -> None:
    """Has the networks of an objective compiled, where the recipe says so, at their first calls in training.

    Args:
        warn: takes a line where networks stay as they are.
    """
    if recipe.compile is not True:
        return
    if engine in SHARDING:
        warn(f"compile=true: networks stay as they are under {engine}, which cuts them into shards")
        return
    networks = list(objective.networks())
    if not networks:
        warn("compile=true: this objective has no network that can be compiled")
    for name, network in networks:
        network.forward = Compiled(network, name, warn)


class Compiled:
    """What a network's `forward` becomes: compiled in training, as it was in evaluation mode.

    Evaluation calls a network with batches of any size, which would each be compiled. Parameters, buffers
    and hooks stay the network's, by their names.

    Args:
        network: compiled for the sizes of its first call in training, and again for others.
        name: of the network, for a person.
        warn: takes a line where the network stays as it is.
    """

    def __init__(self, network: nn.Module, name: str, warn: Warn):
        self.network, self.name, self.warn = network, name, warn
        self.plain = network.forward
        self.compiled: Callable[..., Any] | None = torch.compile(self.plain, backend=BACKEND, dynamic=False)

    def __call__(self, *inputs: Any) -> Any:
        """As the network's `forward`. A compiler that failed has computed nothing: the plain one does."""
        if self.compiled is None or not self.network.training:
            return self.plain(*inputs)
        try:
            with torch._dynamo.config.patch(recompile_limit=VARIANTS):
                return self.compiled(*inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            why = " ".join(str(error).split("\n")[:2]).strip()  # that a backend raised, and what
            self.warn(f"compile=true: the {self.name} stays as it is, for it cannot be compiled: {why}")
            self.compiled = None
            return self.plain(*inputs)
