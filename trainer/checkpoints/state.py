"""A run's state as a flat dictionary by name: what a checkpoint holds, whatever engine wrote it.

model/<parameter or buffer>   optimizer/<slot>/<parameter>   shard/<module>/<tensor>

A value is a whole tensor, equal on all ranks, or `TensorShard`: those rows of one that this rank answers for.
Under `shard/` are the rows that a module's every rank keeps for itself, such as a queue's: no rank has them all.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from trainer.checkpoints import load as load_module
from trainer.checkpoints.load import Checkpoint, load_rows
from trainer.distributed import collectives
from trainer.distributed.rows import ShardedModule, TensorShard, row_range

SHARD = "shard/"
StateValue = Tensor | TensorShard


def collect(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, StateValue]:
    """The state of an objective and its optimizer, of which this rank has all parameters."""
    return gather(objective, Tensor.detach, lambda parameter: optimizer.state.get(parameter, {}))


def gather(
    objective: nn.Module,
    weight: Callable[[Tensor], StateValue],
    slots: Callable[[nn.Parameter], Mapping[str, StateValue]],
) -> dict[str, StateValue]:
    """The state of an objective and its optimizer, however they are kept.

    `weight` gives the value of a parameter or buffer, `slots` what the optimizer keeps of a parameter.
    """
    found = {f"model/{name}": weight(t) for name, t in objective.state_dict(keep_vars=True).items()}
    for name, parameter in objective.named_parameters():
        found |= {f"optimizer/{slot}/{name}": value for slot, value in slots(parameter).items()}
    return found | sharded_state(objective)


def sharded_state(objective: nn.Module) -> dict[str, TensorShard]:
    """This rank's rows of what modules with `sharded_state_dict` keep in shards."""
    return {
        f"{SHARD}{path}/{name}": rows
        for path, module in objective.named_modules()
        if isinstance(module, ShardedModule)
        for name, rows in module.sharded_state_dict().items()
    }


def load(found: Checkpoint) -> dict[str, Tensor]:
    """What this rank needs to go on from a checkpoint, on the host: whole tensors, of shards its own rows.

    Raises:
        UserError: the checkpoint is damaged.
    """
    names = found.manifest["tensors"]
    shards = [name for name in names if name.startswith(SHARD)]
    whole = load_module.load(found, [name for name in names if not name.startswith(SHARD)])
    return whole | load_rows(found, collectives.rank(), collectives.world_size(), shards)


def restore_weights(objective: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Puts parameters and buffers back, bit for bit, into an objective that is not sharded.

    Raises:
        RuntimeError: names or shapes are not the objective's.
    """
    weights = {name.removeprefix("model/"): t for name, t in saved.items() if name.startswith("model/")}
    objective.load_state_dict(weights)


def restore_shards(objective: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Puts back the rows that modules of this rank keep for themselves."""
    for path, module in objective.named_modules():
        if isinstance(module, ShardedModule):
            prefix = f"{SHARD}{path}/"
            rows = {name.removeprefix(prefix): t for name, t in saved.items() if name.startswith(prefix)}
            module.load_sharded_state_dict(rows)


def restore_slots(
    saved: Mapping[str, Tensor], objective: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Puts back what the optimizer keeps of parameters of which this rank has all."""
    parameters = dict(objective.named_parameters())
    for owner, slots in saved_slots(saved).items():
        parameter = parameters[owner]
        for slot, value in slots.items():
            if elementwise(slot, value, parameter):  # where and laid out as its parameter is
                optimizer.state[parameter][slot] = torch.empty_like(parameter).copy_(value).detach()
            else:
                optimizer.state[parameter][slot] = value.to(parameter.device)


def saved_slots(saved: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What was saved of an optimizer: parameter -> slot -> whole tensor."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in saved.items():
        if name.startswith("optimizer/"):
            _, slot, owner = name.split("/", 2)
            found[owner][slot] = value
    return found


def elementwise(slot: str, value: Tensor, parameter: Tensor) -> bool:
    """Whether a slot holds a number for each of the parameter's, rather than one for all of them."""
    return slot != "step" and value.shape == parameter.shape


def own_rows(whole: Tensor) -> StateValue:
    """This rank's rows, copied, of a tensor that all ranks have; one without dimensions stays whole."""
    if not whole.dim():
        return whole.clone()
    start, stop = row_range(len(whole), collectives.rank(), collectives.world_size())
    return TensorShard(
        tuple(whole.shape), start, whole[start:stop].clone(memory_format=torch.contiguous_format)
    )
