"""DeepSpeed ZeRO-1, 2 and 3: ranks share the moments, the gradients, the parameters (arXiv 1910.02054).

The optimizer works on flat float32 tensors, of which a rank has a part. `FlatSlice` says where a parameter
lies in it; checkpoints and clipping read and write everything through it.

DeepSpeed's `safe_get_*` and `safe_set_*` do not serve here. Those of a rank's own part are of stage 3 alone,
and wait for the device at each parameter; the others gather each parameter for every rank, and cannot set
what an optimizer has not made yet. So its fields are read where a `FlatSlice` is made, and in `gradient`.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.checkpoints import state
from trainer.distributed import collectives
from trainer.distributed.launch import DistributedContext
from trainer.distributed.partitioned import PartitionedParameter, is_partitioned
from trainer.engines.engine import (
    BuildOptimizer,
    Engine,
    check_engine,
    copy_with_weights,
    make_contiguous,
)
from trainer.engines.precision import with_precision
from trainer.objectives.objective import Trained

BUCKET = 50_000_000  # elements in one message; DeepSpeed's own 5e8 reserve 2 GB


@dataclass(frozen=True)
class FlatSlice:
    """Where this rank's elements of a parameter lie in the flat tensor of its optimizer group.

    Elements [first, first + count) of the parameter are [offset, offset + count) of `flat`.
    """

    flat: Tensor
    offset: int
    first: int
    count: int

    def view(self, tensor: Tensor) -> Tensor:
        """The slice [count] of a tensor of the flat one's length."""
        return tensor.narrow(0, self.offset, self.count)


class Zero(Engine[Trained]):
    """ZeRO of the stage of `context.engine`."""

    model: Any  # DeepSpeed's engine and the optimizer within it, which have no types
    optimizer: Any

    def __init__(
        self,
        objective: Trained,
        build_optimizer: BuildOptimizer,
        context: DistributedContext,
        precision: str,
        saved: Mapping[str, Tensor],
    ):
        self.device, self.stage = context.device, context.engine.stage
        self._template = copy.deepcopy(objective).cpu() if self.stage == 3 else None
        self._shapes = {parameter: parameter.shape for parameter in objective.parameters()}
        make_contiguous(objective)
        base = build_optimizer(objective.parameters())
        groups = {p: number for number, group in enumerate(base.param_groups) for p in group["params"]}
        self.model = initialize(with_precision(objective, precision, context.device), base, self.stage)
        self.objective, self.optimizer, self.base_optimizer = objective, self.model.optimizer, base
        runs = self.model.zero_optimization_stage() == self.stage and self.optimizer.optimizer is base
        check_engine(context.engine, runs, self.model)
        self.slices = {p: self._flat_slice(p, group) for p, group in groups.items() if p.requires_grad}
        if self.stage == 3:
            self._positions = {
                parameter: (number, index)
                for number, group in enumerate(self.optimizer.fp16_groups)
                for index, parameter in enumerate(group)
            }
        self.skipped_step = False
        self._restore(saved)

    def _flat_slice(self, parameter: nn.Parameter, group: int) -> FlatSlice:
        zero = self.optimizer
        if self.stage == 3:
            assert is_partitioned(parameter)
            number, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
            return FlatSlice(zero.fp32_partitioned_groups_flat[number], offset, *partition_range(parameter))
        flat, mapping = zero.single_partition_of_fp32_groups[group], vars(parameter)["_hp_mapping"]
        if mapping is None:  # other ranks have all of it
            return FlatSlice(flat, 0, 0, 0)
        in_parameter, in_flat = mapping.lp_fragment_address, mapping.hp_fragment_address
        return FlatSlice(flat, in_flat.start, in_parameter.start, in_parameter.numel)

    def _restore(self, saved: Mapping[str, Tensor]) -> None:
        slots_of, names = state.saved_slots(saved), dict(self.objective.named_parameters())
        for name, parameter in names.items():
            for slot, value in slots_of.get(name, {}).items():
                place = self.slices[parameter]
                slots = self.base_optimizer.state[place.flat]
                if state.elementwise(slot, value, torch.empty(self._shapes[parameter], device="meta")):
                    slots.setdefault(slot, torch.zeros_like(place.flat, requires_grad=False))
                    elements = value.flatten()[place.first : place.first + place.count]
                    place.view(slots[slot]).copy_(elements)
                else:
                    slots[slot] = value.to(self.device)

    # ---- a step ----------------------------------------------------------------------------------

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        self.model.set_gradient_accumulation_boundary(last)
        yield

    def zero_grad(self) -> None:
        """DeepSpeed does it after a step."""

    def backward(self, loss: Tensor) -> None:
        self.model.backward(loss)

    @torch.no_grad()
    def clip(self, limit: float) -> None:
        clip_groups = [
            [self.gradient(parameter) for parameter in parameters if parameter.requires_grad]
            for parameters in self.objective.clip_groups()
        ]
        norms = [torch.stack(torch._foreach_norm(gradients)) for gradients in clip_groups]
        squares = collectives.all_reduce_sum(torch.stack([norm.square().sum() for norm in norms]))
        factors = (limit / (squares.sqrt() + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        for gradients, factor in zip(clip_groups, factors, strict=True):
            torch._foreach_mul_(gradients, factor)

    def gradient(self, parameter: nn.Parameter) -> Tensor:
        """This rank's elements [n] of a gradient, as a view to be changed in place.

        Defined between the last backward pass of a step and the step.
        """
        if self.stage == 3:
            assert is_partitioned(parameter)
            number, index = self._positions[parameter]
            return self.optimizer.averaged_gradients[number][index].narrow(
                0, 0, partition_range(parameter)[1]
            )
        mapping = vars(parameter)["_hp_mapping"]
        if mapping is None:  # other ranks have all of it
            return torch.empty(0, dtype=parameter.dtype, device=self.device)
        return mapping.get_lp_grad_fragment(vars(parameter)["_index_in_param_group"])

    def step(self) -> None:
        self.model.step()
        # Stage 3 makes no step where a gradient is not finite; after that of the others the weights are not.
        self.skipped_step |= self.optimizer.overflow

    # ---- checkpoints -----------------------------------------------------------------------------

    @torch.no_grad()
    def state(self) -> dict[str, state.StateValue]:
        def weight(tensor: Tensor) -> state.StateValue:
            return state.local_rows(self._whole(tensor)) if is_partitioned(tensor) else tensor.detach()

        def slots(parameter: nn.Parameter) -> dict[str, state.StateValue]:
            if parameter not in self.slices:
                return {}
            place, values = self.slices[parameter], dict[str, state.StateValue]()
            for slot, value in self._slots(place).items():
                if value.shape == place.flat.shape:
                    whole = self._all_gather(place.view(value), place.first, parameter)
                    values[slot] = state.local_rows(whole)
                else:
                    values[slot] = value
            return values

        return state.gather(self.objective, weight, slots)

    def _whole(self, tensor: Tensor) -> Tensor:
        """A parameter or buffer of which ranks may have parts, whole."""
        if not is_partitioned(tensor):
            return tensor.detach()
        first, count = partition_range(tensor)
        return self._all_gather(tensor.ds_tensor.narrow(0, 0, count), first, tensor)

    def _all_gather(self, elements: Tensor, first: int, parameter: nn.Parameter) -> Tensor:
        """A tensor of a parameter's shape; this rank has its elements [n] from the flat index `first` on."""
        shape = self._shapes[parameter]
        whole = torch.zeros(shape.numel(), dtype=elements.dtype, device=self.device)
        whole[first : first + len(elements)] = elements
        return collectives.all_reduce_sum(whole).view(shape)

    def _slots(self, place: FlatSlice) -> dict[str, Tensor]:
        """The optimizer's tensors for a flat tensor, by slot."""
        slots = self.base_optimizer.state.get(place.flat, {})
        return {slot: value for slot, value in slots.items() if isinstance(value, Tensor)}

    def local_part(self, tensor: Tensor) -> Tensor:
        if not is_partitioned(tensor):
            return tensor
        return tensor.ds_tensor.narrow(0, 0, partition_range(tensor)[1])  # its padding is uninitialized

    def local_slots(self) -> Iterator[Tensor]:
        for place in self.slices.values():
            for value in self._slots(place).values():
                yield place.view(value) if value.shape == place.flat.shape else value

    def finite(self, device: torch.device, weights_only: bool = False) -> Tensor:
        return super().finite(device, weights_only) & (not self.skipped_step)

    @torch.no_grad()
    def unsharded(self) -> Trained:
        if self._template is None:
            return self.objective
        weights = {n: self._whole(t) for n, t in self.objective.state_dict(keep_vars=True).items()}
        return copy_with_weights(self._template, weights, self.objective.training, self.device)


def partition_range(parameter: PartitionedParameter) -> tuple[int, int]:
    """This rank's part of a partitioned parameter: its first element, the number of its elements."""
    size = parameter.ds_tensor.numel()
    first = min(collectives.rank() * size, parameter.ds_numel)
    return first, min(size, parameter.ds_numel - first)


def options(stage: int, cuda: bool) -> dict[str, Any]:
    """DeepSpeed's configuration: nothing that it does by default and we do, or nobody reads.

    On a CPU gradients are reduced after the backward pass, in the order that old runs have.
    """
    zero = {"stage": stage, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    if stage < 3:  # stage 3 overlaps by itself, and takes its norm whatever is asked
        zero |= {"overlap_comm": cuda, "compute_grad_norm": False}  # the host would wait for the norm
    return {
        "train_micro_batch_size_per_gpu": 1,  # for its own log only, as is the next
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device in each pass
        "zero_optimization": zero,
    }


def initialize(model: nn.Module, optimizer: torch.optim.Optimizer, stage: int) -> Any:
    """DeepSpeed's engine around a model, without what it does by default: clipping, its own optimizer."""
    import deepspeed
    from deepspeed import ops
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiling it, for inference, takes a minute
    # DeepSpeed calls collectives by the names they had before torch 2.13.
    warnings.filterwarnings(
        "ignore", category=FutureWarning, message=r".*(all_gather_into|reduce_scatter)_tensor.*"
    )
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=options(stage, next(model.parameters()).is_cuda),
        dist_init_required=False,
    )
    return engine
