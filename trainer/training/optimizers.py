"""From a recipe's optimizer to torch's, and the one that torch has not: LARS."""

from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import Tensor, nn

from data_pipelines.common.errors import UserError
from trainer.distributed import collectives
from trainer.distributed.collectives import local_part
from trainer.distributed.engine_kind import EngineKind
from trainer.recipe.optimizers import AdamOptions, LarsOptions, OptimizerOptions, SgdOptions


def build_optimizer(
    options: OptimizerOptions, lr: float, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer over those parameters that learn.

    Nothing in it waits for the device: Adam is fused, one kernel and a step count that stays there; SGD and
    LARS take all parameters of a group in a few calls. The groups: one, or with `decay_norms: false` a
    second, of parameters without weight decay and trust ratio.
    """
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    groups = split(learning, spare_norms=not options.decay_norms)
    return BUILDERS[options.kind](options, groups, {"lr": lr, "weight_decay": options.weight_decay})


def _adam(options: AdamOptions, groups: list[dict], shared: dict) -> torch.optim.Adam:
    first, second = options.betas
    return torch.optim.Adam(groups, **shared, betas=(first, second), eps=options.eps, fused=True)


def _adamw(options: AdamOptions, groups: list[dict], shared: dict) -> torch.optim.AdamW:
    first, second = options.betas
    return torch.optim.AdamW(groups, **shared, betas=(first, second), eps=options.eps, fused=True)


def _sgd(options: SgdOptions, groups: list[dict], shared: dict) -> torch.optim.SGD:
    return torch.optim.SGD(
        groups, **shared, momentum=options.momentum, nesterov=options.nesterov, foreach=True
    )


def _lars(options: LarsOptions, groups: list[dict], shared: dict) -> "Lars":
    for group in groups:  # those without decay have no trust ratio either
        group["adapt"] = group.get("weight_decay") != 0.0
    return Lars(groups, **shared, momentum=options.momentum, trust=options.trust)


BUILDERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": _adam,
    "adamw": _adamw,
    "sgd": _sgd,
    "lars": _lars,
}


def split(parameters: list[nn.Parameter], spare_norms: bool) -> list[dict]:
    """The parameter groups: all in one, or norms and biases (at most one dimension) apart, without decay."""
    matrices = [parameter for parameter in parameters if parameter.ndim > 1 or not spare_norms]
    spared = [parameter for parameter in parameters if parameter.ndim <= 1 and spare_norms]
    groups: list[dict] = [
        {"params": matrices},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def check_engine(options: OptimizerOptions, engine: EngineKind) -> None:
    """Raises:
    UserError: the engine hands the optimizer flat slices, in which a layer has no norm of its own.
    """
    if options.reads_layers and engine.is_zero:
        raise UserError(
            f"optimizer.kind={options.kind} takes the norm of every layer, and {engine} cuts layers apart; "
            "launch with recipes/launch/ddp.yaml or fsdp2.yaml, or choose optimizer.kind=sgd"
        )


class Lars(torch.optim.Optimizer):
    """Stochastic gradient descent whose learning rate is adapted to each layer.

    With learning rate γ, momentum m, weight decay β and trust coefficient η, for a layer's weights w and
    gradient g: λ = η‖w‖ / (‖g‖ + β‖w‖), v ← m v + γ λ (g + β w), w ← w - v (You et al., arXiv 1708.03888,
    algorithm 1). The rate is inside the momentum: a step taken under a high rate keeps its length when the
    rate falls, where torch's SGD multiplies v by the rate of the day. λ is 1 where ‖w‖ or ‖g‖ is 0, and in
    groups whose `adapt` is false. A parameter is a layer; one that FSDP2 has sharded has the norm of all its
    shards.
    """

    def __init__(
        self, groups: list[dict], lr: float, momentum: float, trust: float, weight_decay: float = 0.0
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "trust": trust,
            "weight_decay": weight_decay,
            "adapt": True,
        }
        super().__init__(groups, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; with `closure`, which computes the loss anew, that loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step(group, [parameter for parameter in group["params"] if parameter.grad is not None])
        return loss

    def _step(self, group: dict, parameters: list[nn.Parameter]) -> None:
        if not parameters:
            return
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [local_part(self.state[parameter]["momentum_buffer"]) for parameter in parameters]
        gradients = [local_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
        weights = [local_part(parameter) for parameter in parameters]
        updates = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
        if group["adapt"]:
            sharded = any(local is not whole for local, whole in zip(weights, parameters, strict=True))
            w, g = norms([weights, gradients], sharded)
            ratio = group["trust"] * w / (g + group["weight_decay"] * w)
            ratio = torch.where((w > 0) & (g > 0), ratio, 1.0)
            torch._foreach_mul_(updates, list((group["lr"] * ratio).unbind()))
        else:
            torch._foreach_mul_(updates, group["lr"])
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates)
        torch._foreach_sub_(weights, buffers)


def norms(lists: list[list[Tensor]], sharded: bool) -> Tensor:
    """The norms of lists of n tensors each [lists, n]; of sharded tensors, over the shards of all ranks."""
    local = torch.stack([torch.stack(torch._foreach_norm(tensors)) for tensors in lists])
    if not sharded:
        return local
    return collectives.all_reduce_sum(local.square()).sqrt()
