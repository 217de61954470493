"""A run's state as a flat dictionary by name: the contents of a checkpoint, the same under every engine.

model/<parameter or buffer>   optimizer/<slot>/<parameter>   shard/<module>/<tensor>

A value is a whole tensor, equal on all ranks, or a `TensorShard`: the rows of one that this rank saves. Under
`shard/` are the tensors of a `ShardedModule`, such as a queue, of which no rank has all rows.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from trainer.checkpoints.format import DTYPES
from trainer.checkpoints.load import Checkpoint, load_rows
from trainer.checkpoints.load import load as load_tensors
from trainer.distributed import collectives
from trainer.distributed.rows import ShardedModule, TensorShard, row_range

SHARD = "shard/"
StateValue = Tensor | TensorShard


def collect(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, StateValue]:
    """The state of an objective and its optimizer where every rank has all parameters."""
    return gather(objective, Tensor.detach, lambda parameter: optimizer.state.get(parameter, {}))


def gather(
    objective: nn.Module,
    weight: Callable[[Tensor], StateValue],
    slots: Callable[[nn.Parameter], Mapping[str, StateValue]],
) -> dict[str, StateValue]:
    """The state of an objective and its optimizer, however they are sharded.

    Args:
        weight: returns the value to save of a parameter or buffer.
        slots: returns the optimizer's state of a parameter, by slot.
    """
    values = {f"model/{name}": weight(t) for name, t in objective.state_dict(keep_vars=True).items()}
    for name, parameter in objective.named_parameters():
        values |= {f"optimizer/{slot}/{name}": value for slot, value in slots(parameter).items()}
    return values | sharded_state(objective)


def sharded_state(objective: nn.Module) -> dict[str, TensorShard]:
    """This rank's rows of the tensors of each ShardedModule."""
    return {
        f"{SHARD}{path}/{name}": rows
        for path, module in objective.named_modules()
        if isinstance(module, ShardedModule)
        for name, rows in module.sharded_state_dict().items()
    }


def load(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What this rank needs to go on from a checkpoint, on the host: whole tensors, under `shard/` its rows.

    Collective: the bytes of a tensor are read by one rank, which sends them to the others.

    Raises:
        SharedError: on every rank, where one finds the checkpoint damaged.
    """
    described = checkpoint.manifest["tensors"]
    whole = {name: about for name, about in described.items() if not name.startswith(SHARD)}
    readers = _readers(whole, collectives.world_size())
    read: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}

    def read_parts() -> None:
        rank = collectives.rank()
        read.update(load_tensors(checkpoint, [name for name in whole if readers[name] == rank]))
        shards = [name for name in described if name.startswith(SHARD)]
        rows.update(load_rows(checkpoint, rank, collectives.world_size(), shards))

    collectives.run_on_all(read_parts)  # so that no rank waits for one that could not read
    values = {}
    for name, about in whole.items():
        value = read.get(name)
        if value is None:
            value = torch.empty(about["shape"], dtype=DTYPES[about["dtype"]])
        collectives.broadcast_bytes(value, readers[name])
        values[name] = value
    return values | rows


def _readers(tensors: Mapping[str, Mapping], world: int) -> dict[str, int]:
    """The rank that reads each tensor, so that all read about equally many bytes; equal on every rank."""
    sizes = {
        name: math.prod(about["shape"]) * DTYPES[about["dtype"]].itemsize for name, about in tensors.items()
    }
    loads, readers = [(0, rank) for rank in range(world)], {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        load, rank = loads[0]
        readers[name] = rank
        heapq.heapreplace(loads, (load + sizes[name], rank))
    return readers


def restore_weights(objective: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Restores parameters and buffers, bit for bit, of an objective that is not sharded.

    Raises:
        RuntimeError: names or shapes are not the objective's.
    """
    weights = {name.removeprefix("model/"): t for name, t in saved.items() if name.startswith("model/")}
    objective.load_state_dict(weights)


def restore_shards(objective: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Restores this rank's rows of the tensors of each ShardedModule."""
    for path, module in objective.named_modules():
        if isinstance(module, ShardedModule):
            prefix = f"{SHARD}{path}/"
            rows = {name.removeprefix(prefix): t for name, t in saved.items() if name.startswith(prefix)}
            module.load_sharded_state_dict(rows)


def restore_slots(
    saved: Mapping[str, Tensor], objective: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Restores the optimizer's state where every rank has all parameters."""
    parameters = dict(objective.named_parameters())
    for name, slots in saved_slots(saved).items():
        parameter = parameters[name]
        for slot, value in slots.items():
            if elementwise(slot, value, parameter):  # on the device and in the layout of its parameter
                optimizer.state[parameter][slot] = torch.empty_like(parameter).copy_(value).detach()
            else:
                optimizer.state[parameter][slot] = value.to(parameter.device)


def saved_slots(saved: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The saved state of the optimizer: parameter's name -> slot -> whole tensor."""
    slots: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in saved.items():
        if name.startswith("optimizer/"):
            _, slot, parameter = name.split("/", 2)
            slots[parameter][slot] = value
    return slots


def elementwise(slot: str, value: Tensor, parameter: Tensor) -> bool:
    """Whether a slot has a number for each of the parameter's, rather than one for the whole parameter."""
    return slot != "step" and value.shape == parameter.shape


def local_rows(whole: Tensor) -> StateValue:
    """A copy of this rank's rows of a tensor that every rank has; a 0-dim tensor is copied whole."""
    if not whole.dim():
        return whole.clone()
    start, stop = row_range(len(whole), collectives.rank(), collectives.world_size())
    return TensorShard(
        tuple(whole.shape), start, whole[start:stop].clone(memory_format=torch.contiguous_format)
    )
