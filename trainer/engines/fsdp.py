"""FSDP2: every rank keeps a share of each parameter, its gradient and its moments (arXiv 2304.11277)."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer.checkpoints import state
from trainer.distributed import collectives
from trainer.distributed.launch import DistributedContext
from trainer.engines.engine import Build, Engine, check_engine, filled, make_contiguous


class Fsdp(Engine):
    """Parameters are cut along their first dimension and gathered while a pass needs them."""

    def __init__(
        self, objective: nn.Module, build: Build, context: DistributedContext, saved: Mapping[str, Tensor]
    ):
        self.device = context.device
        self._blank = copy.deepcopy(objective).cpu()
        make_contiguous(objective)
        mesh = init_device_mesh(context.device.type, (collectives.world_size(),))
        for unit in list(units(objective)):
            fully_shard(unit, mesh=mesh)
        self.objective = fully_shard(objective, mesh=mesh)
        sharded = all(isinstance(parameter, DTensor) for parameter in objective.parameters())
        check_engine("fsdp2", sharded, objective)
        self.optimizer = build(objective.parameters())
        self._restore(saved)

    def _restore(self, saved: Mapping[str, Tensor]) -> None:
        parameters = dict(self.objective.named_parameters())
        for owner, slots in state.saved_slots(saved).items():
            parameter = parameters[owner]
            for slot, value in slots.items():
                value = value.to(self.device)
                if state.elementwise(slot, value, parameter):
                    # every rank has the whole and takes its share: nothing travels
                    mesh, placements = parameter.device_mesh, parameter.placements
                    value = value.to(parameter.dtype).contiguous()
                    value = distribute_tensor(value, mesh, placements, src_data_rank=None)
                self.optimizer.state[parameter][slot] = value

    @contextmanager
    def micro_batch(self, last: bool):
        self.objective.set_requires_gradient_sync(last)
        yield

    def forward(self, batch) -> dict[str, Tensor | float]:
        return self.objective(batch)

    @torch.no_grad()
    def state(self) -> dict[str, state.StateValue]:
        def shared(tensor: Tensor) -> state.StateValue:
            return state.own_rows(tensor.full_tensor()) if isinstance(tensor, DTensor) else tensor.detach()

        def slots(parameter: nn.Parameter) -> dict[str, state.StateValue]:
            return {slot: shared(value) for slot, value in self.optimizer.state.get(parameter, {}).items()}

        return state.gather(self.objective, shared, slots)

    @torch.no_grad()
    def unsharded(self) -> nn.Module:
        weights = {
            name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            for name, tensor in self.objective.state_dict().items()
        }
        return filled(self._blank, weights, self.objective, self.device)


def units(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of an objective that are gathered one after another.

    A block is a module of several layers in a Sequential: it is called as a whole, so that its parameters are
    there when it needs them. What is in no block is gathered for the whole pass.
    """
    for child in module.children():
        layers = not isinstance(child, nn.Sequential) and list(child.children()) and list(child.parameters())
        if layers and isinstance(module, nn.Sequential):
            yield child
        else:
            yield from units(child)
