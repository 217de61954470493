"""Engines: what runs an objective and its optimizer on the ranks.

One process and DDP are here, ZeRO-1/2/3 in `engines_deepspeed`, FSDP2 in `engines_fsdp`. Accelerate launches
all of them and wraps for DDP. DeepSpeed and FSDP2 are called by themselves: Accelerate's wrapper of the one
clips at 1.0 unasked and hides the moment between backward pass and step, where we clip; its wrapper of the
other silently becomes DDP without a GPU.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data_pipelines.common.errors import UserError
from trainer.checkpoints import state
from trainer.distributed.launch import DistributedContext

PIECE = 2**22  # numbers
Build = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Engine(ABC):
    """An objective with its optimizer, on all ranks.

    Every method is collective. `objective.after_step()` is the caller's, after `step`.

    Attributes:
        objective: what is trained. Its parameters may be shards: only `forward` may run it.
        optimizer: its `param_groups` take the learning rate.
    """

    objective: nn.Module
    optimizer: torch.optim.Optimizer

    def micro_batch(self, last: bool) -> AbstractContextManager:
        """Around forward and backward pass; gradients are averaged over ranks in the last of a step."""
        return nullcontext()

    def zero_grad(self) -> None:
        """Before the first micro-batch."""
        self.optimizer.zero_grad()

    @abstractmethod
    def forward(self, batch) -> dict[str, Tensor | float]:
        """The objective's named scalars of this rank's share of a batch."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss to those of the micro-batches before."""
        loss.backward()

    def clip(self, limit: float) -> None:
        """Shortens each player's gradient, of all ranks, to at most that norm."""
        for parameters in self.objective.clip_groups():
            torch.nn.utils.clip_grad_norm_(parameters, limit)

    def step(self) -> None:
        """The optimizer's step. What has no part in the loss has a gradient of zero, as under ZeRO."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()

    @abstractmethod
    def state(self) -> dict[str, state.StateValue]:
        """What a checkpoint holds, by names that are the same under every engine."""

    def held(self) -> Iterator[Tensor]:
        """Every tensor, or part of one, that this rank has in what a checkpoint would hold."""
        found = list(self.objective.state_dict().values())
        for slots in self.optimizer.state.values():
            found += [value for value in slots.values() if isinstance(value, Tensor)]
        for tensor in found:
            yield tensor.to_local() if hasattr(tensor, "to_local") else tensor

    def finite(self) -> Tensor:
        """Whether all that this rank holds is finite, as a tensor on the device."""
        rows = [rows.rows for rows in state.sharded_state(self.objective).values()]
        found = [all_finite(tensor) for tensor in (*self.held(), *rows)]
        return torch.stack([answer.to(found[0].device) for answer in found]).all()

    def unsharded(self) -> nn.Module:
        """The objective with all its parameters on every rank: for evaluation, export and pictures.

        It is the one that is trained, or where that is sharded a copy as of now, in the same mode.
        """
        return self.objective


def all_finite(tensor: Tensor) -> Tensor:
    """Looks at a few million numbers at a time: of a queue's shard a whole copy would be made."""
    if not tensor.dim() or not tensor.numel():
        return tensor.isfinite().all()
    rows = max(1, PIECE * len(tensor) // tensor.numel())
    return torch.stack([part.isfinite().all() for part in tensor.split(rows)]).all()


class SingleProcess(Engine):
    """One process."""

    def __init__(
        self, objective: nn.Module, build: Build, context: DistributedContext, saved: Mapping[str, Tensor]
    ):
        self.objective = self.model = objective
        self.optimizer = build(objective.parameters())
        state.restore_slots(saved, objective, self.optimizer)

    def forward(self, batch) -> dict[str, Tensor | float]:
        return self.model(batch)

    def state(self) -> dict[str, state.StateValue]:
        return state.collect(self.objective, self.optimizer)


class Ddp(SingleProcess):
    """Every rank has all; gradients are averaged."""

    def __init__(
        self, objective: nn.Module, build: Build, context: DistributedContext, saved: Mapping[str, Tensor]
    ):
        super().__init__(objective, build, context, saved)
        self.model = context.accelerator.prepare(objective)
        check_engine("ddp", isinstance(self.model, DistributedDataParallel), self.model)

    def micro_batch(self, last: bool) -> AbstractContextManager:
        return nullcontext() if last else self.model.no_sync()


def compute_in_bf16(objective: nn.Module, device: torch.device) -> None:
    """Lets the forward pass choose bfloat16 where that is safe; parameters and results stay float32.

    Done within the objective, as DeepSpeed switches off an autocast that is around it.
    """
    inner = type(objective).forward

    def forward(self, *arguments) -> dict[str, Tensor | float]:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            values = inner(self, *arguments)
        narrow = {n: v for n, v in values.items() if isinstance(v, Tensor) and v.dtype == torch.bfloat16}
        return values | {name: value.float() for name, value in narrow.items()}

    objective.forward = MethodType(forward, objective)


def make_contiguous(objective: nn.Module) -> None:
    """Lays parameters out row by row, as engines that cut them ask for (channels_last is lost)."""
    for parameter in objective.parameters():
        # contiguous() leaves alone what counts as such, whatever its strides along dimensions of size 1
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


def filled(
    blank: nn.Module, weights: Mapping[str, Tensor], objective: nn.Module, device: torch.device
) -> nn.Module:
    """A copy of `blank`, an objective before it was sharded, with the weights of now and the same mode."""
    found = copy.deepcopy(blank).to(device)
    found.load_state_dict(weights)
    return found.train(objective.training)


def check_engine(asked: str, runs: bool, found: object) -> None:
    """Raises:
    UserError: `runs` is false: what was made is not the engine that was asked for.
    """
    if not runs:
        raise UserError(
            f"the launch file asks for {asked}, but {type(found).__name__} would run; "
            "install the versions of constraints.txt, or launch with recipes/launch/ddp.yaml"
        )
