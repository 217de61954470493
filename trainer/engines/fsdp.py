"""FSDP2: every rank keeps a shard of each parameter, its gradient and its moments (arXiv 2304.11277)."""

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
from trainer.distributed.engine_kind import EngineKind
from trainer.distributed.launch import DistributedContext
from trainer.engines.engine import (
    BuildOptimizer,
    Engine,
    check_engine,
    copy_with_weights,
    make_contiguous,
)
from trainer.engines.precision import with_precision
from trainer.objectives.objective import Trained


class Fsdp(Engine[Trained]):
    """Parameters are sharded along their first dimension and gathered while a pass needs them."""

    def __init__(
        self,
        objective: Trained,
        build_optimizer: BuildOptimizer,
        context: DistributedContext,
        precision: str,
        saved: Mapping[str, Tensor],
    ):
        self.device = context.device
        self._template = copy.deepcopy(objective).cpu()
        make_contiguous(objective)
        mesh = init_device_mesh(context.device.type, (collectives.world_size(),))
        for block in list(sharded_blocks(objective)):
            fully_shard(block, mesh=mesh)
        self.objective, self._sharded = objective, fully_shard(objective, mesh=mesh)  # in place: one object
        sharded = all(isinstance(parameter, DTensor) for parameter in objective.parameters())
        check_engine(EngineKind.FSDP2, sharded, objective)
        self.model = with_precision(self.objective, precision, context.device)
        self.optimizer = build_optimizer(objective.parameters())
        self._restore(saved)

    def _restore(self, saved: Mapping[str, Tensor]) -> None:
        parameters = dict(self.objective.named_parameters())
        for name, slots in state.saved_slots(saved).items():
            parameter = parameters[name]
            for slot, value in slots.items():
                value = value.to(self.device)
                if state.elementwise(slot, value, parameter):
                    assert isinstance(parameter, DTensor)
                    # every rank has the whole tensor and keeps its shard: nothing is sent
                    mesh, placements = parameter.device_mesh, parameter.placements
                    value = value.to(parameter.dtype).contiguous()
                    value = distribute_tensor(value, mesh, placements, src_data_rank=None)
                self.optimizer.state[parameter][slot] = value

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        self._sharded.set_requires_gradient_sync(last)
        yield

    @torch.no_grad()
    def state(self) -> dict[str, state.StateValue]:
        def value_of(tensor: Tensor) -> state.StateValue:
            return state.local_rows(tensor.full_tensor()) if isinstance(tensor, DTensor) else tensor.detach()

        def slots(parameter: nn.Parameter) -> dict[str, state.StateValue]:
            return {slot: value_of(value) for slot, value in self.optimizer.state.get(parameter, {}).items()}

        return state.gather(self.objective, value_of, slots)

    @torch.no_grad()
    def unsharded(self) -> Trained:
        weights = {
            name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            for name, tensor in self.objective.state_dict().items()
        }
        return copy_with_weights(self._template, weights, self.objective.training, self.device)


def sharded_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of an objective whose parameters are gathered one block after another.

    A block is a module of several layers in a Sequential: it is called as a whole, so its parameters are
    gathered when it needs them. Parameters in no block are gathered for the whole pass.
    """
    for child in module.children():
        layers = not isinstance(child, nn.Sequential) and any(True for _ in child.children())
        if layers and any(True for _ in child.parameters()) and isinstance(module, nn.Sequential):
            yield child
        else:
            yield from sharded_blocks(child)
