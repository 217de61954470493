"""Engines: what runs an objective and its optimizer on the ranks.

The base class, one process and DDP are here, DeepSpeed ZeRO-1/2/3 in `zero`, FSDP2 in `fsdp`. Accelerate
launches all of them, but wraps the objective for DDP only. DeepSpeed and FSDP2 are called directly:
Accelerate's wrapper of DeepSpeed clips at 1.0 unasked and leaves no moment between backward pass and step,
where we clip; its wrapper of FSDP2 silently becomes DDP without a GPU.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Generic

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data_pipelines.common.errors import UserError
from data_pipelines.loader import Batch
from trainer.checkpoints import state
from trainer.distributed.engine_kind import EngineKind
from trainer.distributed.launch import DistributedContext
from trainer.engines.precision import with_precision
from trainer.objectives.objective import Trained, Values

BuildOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Engine(ABC, Generic[Trained]):
    """An objective with its optimizer, on all ranks.

    Every method is collective. The caller calls `objective.after_step()` after `step`.

    Attributes:
        objective: what is trained. Its parameters may be shards: only `forward` may run it.
        model: what `forward` calls: the objective, wrapped for precision and ranks.
        optimizer: its `param_groups` hold the learning rate, which the caller sets.
    """

    objective: Trained
    model: nn.Module
    optimizer: torch.optim.Optimizer

    @abstractmethod
    def __init__(
        self,
        objective: Trained,
        build_optimizer: BuildOptimizer,
        context: DistributedContext,
        precision: str,
        saved: Mapping[str, Tensor],
    ):
        """The arguments of `open_engine`; weights are restored already, the optimizer's state is not."""

    def micro_batch(self, last: bool) -> AbstractContextManager:
        """Around forward and backward pass; gradients are averaged over ranks in the last of a step."""
        return nullcontext()

    def zero_grad(self) -> None:
        """Before the first micro-batch."""
        self.optimizer.zero_grad()

    def forward(self, batch: Batch) -> Values:
        """The objective's named scalars for this rank's rows of a batch; `loss` is to be minimized."""
        return self.model(batch)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss to those of the micro-batches before."""
        loss.backward()

    def clip(self, limit: float) -> None:
        """Scales the gradient of each clip group to a norm, over all ranks, of at most `limit`."""
        for parameters in self.objective.clip_groups():
            torch.nn.utils.clip_grad_norm_(parameters, limit)

    def step(self) -> None:
        """The optimizer's step. A parameter that no loss reads has a gradient of zero, as under ZeRO."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()

    @abstractmethod
    def state(self) -> dict[str, state.StateValue]:
        """What a checkpoint holds, by names that are the same under every engine."""

    def local_part(self, tensor: Tensor) -> Tensor:
        """This rank's part of a parameter or buffer, as a view."""
        return tensor.to_local() if hasattr(tensor, "to_local") else tensor

    def local_slots(self) -> Iterator[Tensor]:
        """This rank's part of every tensor of the optimizer that a checkpoint would hold."""
        for slots in self.optimizer.state.values():
            for value in slots.values():
                if isinstance(value, Tensor):
                    yield self.local_part(value)

    def finite(self, device: torch.device, weights_only: bool = False) -> Tensor:
        """Whether all that a checkpoint would hold of this rank is finite: a bool [] on the device.

        With `weights_only` buffers, the optimizer's state and shards are not looked at. Nothing waits for the
        device.
        """
        if weights_only:
            return all_finite(map(self.local_part, self.objective.parameters()), device)
        weights = map(self.local_part, self.objective.state_dict(keep_vars=True).values())
        shards = (shard.rows for shard in state.sharded_state(self.objective).values())
        return all_finite((*weights, *self.local_slots(), *shards), device)

    def unsharded(self) -> Trained:
        """The objective with all its parameters on every rank: for evaluation, export and pictures.

        Where parameters are sharded it is a copy with the weights of this moment, in the same mode.
        """
        return self.objective


class SingleProcess(Engine[Trained]):
    """One process."""

    def __init__(
        self,
        objective: Trained,
        build_optimizer: BuildOptimizer,
        context: DistributedContext,
        precision: str,
        saved: Mapping[str, Tensor],
    ):
        self.objective, self.model = objective, with_precision(objective, precision, context.device)
        self.optimizer = build_optimizer(objective.parameters())
        state.restore_slots(saved, objective, self.optimizer)

    def state(self) -> dict[str, state.StateValue]:
        return state.collect(self.objective, self.optimizer)


class Ddp(SingleProcess[Trained]):
    """Every rank has all parameters; gradients are averaged."""

    model: DistributedDataParallel

    def __init__(
        self,
        objective: Trained,
        build_optimizer: BuildOptimizer,
        context: DistributedContext,
        precision: str,
        saved: Mapping[str, Tensor],
    ):
        super().__init__(objective, build_optimizer, context, precision, saved)
        self.model = context.accelerator.prepare(self.model)
        check_engine(EngineKind.DDP, isinstance(self.model, DistributedDataParallel), self.model)

    def micro_batch(self, last: bool) -> AbstractContextManager:
        return nullcontext() if last else self.model.no_sync()


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Whether all numbers of all tensors are finite: a bool [] on the device, by some few launches.

    The largest absolute value of a tensor is finite where all its numbers are: unlike a sum of squares it
    does not overflow. It is taken of all tensors of a type in one call, and nothing of their size is made.
    """
    alike = defaultdict[tuple[torch.device, torch.dtype], list[Tensor]](list)
    for tensor in tensors:
        if tensor.numel() and tensor.is_floating_point():
            alike[tensor.device, tensor.dtype].append(tensor)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for group in alike.values():
        flag = torch.stack(torch._foreach_norm(group, math.inf)).isfinite().all()
        # Optimizers count steps on the host: a copy of their flag would wait for the device, a number not.
        finite &= flag if flag.device == device else flag.item()
    return finite


def make_contiguous(objective: nn.Module) -> None:
    """Lays parameters out row by row, as engines that shard them require (channels_last is lost)."""
    for parameter in objective.parameters():
        # contiguous() leaves alone what counts as such, whatever its strides along dimensions of size 1
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


def copy_with_weights(
    template: Trained, weights: Mapping[str, Tensor], training: bool, device: torch.device
) -> Trained:
    """A copy of `template`, an objective before it was sharded, with these weights, in this mode."""
    objective = copy.deepcopy(template).to(device)
    objective.load_state_dict(weights)
    return objective.train(training)


def check_engine(kind: EngineKind, runs: bool, wrapped: object) -> None:
    """Raises:
    UserError: `runs` is false: what a library made of the objective is not the engine of the launch file.
    """
    if not runs:
        raise UserError(
            f"the launch file asks for {kind}, but {type(wrapped).__name__} would run; "
            "install the versions of constraints.txt, or launch with recipes/launch/ddp.yaml"
        )
