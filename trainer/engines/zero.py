"""DeepSpeed ZeRO-1, 2 and 3: ranks share the moments, the gradients, the parameters (arXiv 1910.02054).

The optimizer works on flat float32 tensors, of which a rank has a part. `Fragment` says where a
parameter lies in it; everything that a checkpoint or the clipping needs is read and written through it.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.checkpoints import state
from trainer.distributed import collectives
from trainer.distributed.launch import DistributedContext
from trainer.engines.engine import Build, Engine, check_engine, filled, make_contiguous

BUCKET = 50_000_000  # elements that travel together; DeepSpeed's own 5e8 reserve 2 GB


@dataclass(frozen=True)
class Fragment:
    """Elements [first, first + count) of a parameter are [at, at + count) of the flat tensor on this rank."""

    flat: Tensor
    at: int
    first: int
    count: int

    def of(self, tensor: Tensor) -> Tensor:
        """The fragment in a tensor of the flat one's length."""
        return tensor.narrow(0, self.at, self.count)


class Zero(Engine):
    """ZeRO of the stage in `context.engine`."""

    def __init__(
        self, objective: nn.Module, build: Build, context: DistributedContext, saved: Mapping[str, Tensor]
    ):
        self.device, self.stage = context.device, int(context.engine[-1])
        self._blank = copy.deepcopy(objective).cpu() if self.stage == 3 else None
        self._shapes = {parameter: parameter.shape for parameter in objective.parameters()}
        make_contiguous(objective)
        base = build(objective.parameters())
        groups = {p: number for number, group in enumerate(base.param_groups) for p in group["params"]}
        self.engine = initialize(objective, base, self.stage)
        self.objective, self.optimizer, self.base = objective, self.engine.optimizer, base
        runs = self.engine.zero_optimization_stage() == self.stage and self.optimizer.optimizer is base
        check_engine(context.engine, runs, self.engine)
        self.fragments = {p: self._fragment(p, group) for p, group in groups.items() if p.requires_grad}
        if self.stage == 3:
            self._positions = {
                parameter: (number, index)
                for number, group in enumerate(self.optimizer.fp16_groups)
                for index, parameter in enumerate(group)
            }
        self.skipped = False
        self._restore(saved)

    def _fragment(self, parameter: nn.Parameter, group: int) -> Fragment:
        zero = self.optimizer
        if self.stage == 3:
            number, at, _ = zero.grad_position[zero.get_param_id(parameter)]
            return Fragment(zero.fp32_partitioned_groups_flat[number], at, *own_elements(parameter))
        flat, place = zero.single_partition_of_fp32_groups[group], parameter._hp_mapping
        if place is None:  # other ranks have all of it
            return Fragment(flat, 0, 0, 0)
        inside, flattened = place.lp_fragment_address, place.hp_fragment_address
        return Fragment(flat, flattened.start, inside.start, inside.numel)

    def _restore(self, saved: Mapping[str, Tensor]) -> None:
        slots_of, names = state.saved_slots(saved), dict(self.objective.named_parameters())
        for name, parameter in names.items():
            for slot, value in slots_of.get(name, {}).items():
                fragment = self.fragments[parameter]
                kept = self.base.state[fragment.flat]
                if state.elementwise(slot, value, torch.empty(self._shapes[parameter], device="meta")):
                    kept.setdefault(slot, torch.zeros_like(fragment.flat, requires_grad=False))
                    mine = value.flatten()[fragment.first : fragment.first + fragment.count]
                    fragment.of(kept[slot]).copy_(mine)
                else:
                    kept[slot] = value.to(self.device)

    # ---- a step ----------------------------------------------------------------------------------

    @contextmanager
    def micro_batch(self, last: bool):
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def zero_grad(self) -> None:
        """DeepSpeed does it after a step."""

    def forward(self, batch) -> dict[str, Tensor | float]:
        return self.engine(batch)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

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
        """This rank's elements of a gradient, between the last backward pass and the step; to be changed."""
        if self.stage == 3:
            number, index = self._positions[parameter]
            return self.optimizer.averaged_gradients[number][index].narrow(0, 0, own_elements(parameter)[1])
        place = parameter._hp_mapping
        if place is None:  # other ranks have all of it
            return torch.empty(0, dtype=parameter.dtype, device=self.device)
        return place.get_lp_grad_fragment(parameter._index_in_param_group)

    def step(self) -> None:
        self.engine.step()
        self.skipped |= self.optimizer.overflow  # a gradient was not finite: DeepSpeed makes no such step

    # ---- what is kept ----------------------------------------------------------------------------

    def _weight(self, tensor: Tensor) -> Tensor:
        """A parameter or buffer, whole."""
        if not hasattr(tensor, "ds_tensor"):
            return tensor.detach()
        first, count = own_elements(tensor)
        return self._gathered(tensor.ds_tensor.narrow(0, 0, count), first, tensor)

    def _gathered(self, own: Tensor, first: int, parameter: nn.Parameter) -> Tensor:
        """A tensor of a parameter's shape of which every rank has some elements, one after another."""
        shape = self._shapes[parameter]
        found = torch.zeros(shape.numel(), dtype=own.dtype, device=self.device)
        found[first : first + len(own)] = own
        return collectives.all_reduce_sum(found).view(shape)

    @torch.no_grad()
    def state(self) -> dict[str, state.StateValue]:
        def weight(tensor: Tensor) -> state.StateValue:
            return state.own_rows(self._weight(tensor)) if hasattr(tensor, "ds_tensor") else tensor.detach()

        def slots(parameter: nn.Parameter) -> dict[str, state.StateValue]:
            fragment, found = self.fragments.get(parameter), {}
            for slot, value in self._slots(fragment).items():
                if value.shape == fragment.flat.shape:
                    value = state.own_rows(self._gathered(fragment.of(value), fragment.first, parameter))
                found[slot] = value
            return found

        return state.gather(self.objective, weight, slots)

    def _slots(self, fragment: Fragment | None) -> dict[str, Tensor]:
        kept = self.base.state.get(fragment.flat, {}) if fragment else {}
        return {slot: value for slot, value in kept.items() if isinstance(value, Tensor)}

    def held(self) -> Iterator[Tensor]:
        for tensor in self.objective.state_dict(keep_vars=True).values():
            if hasattr(tensor, "ds_tensor"):  # padded by whatever was there
                yield tensor.ds_tensor.narrow(0, 0, own_elements(tensor)[1])
            else:
                yield tensor
        for fragment in self.fragments.values():
            for value in self._slots(fragment).values():
                yield fragment.of(value) if value.shape == fragment.flat.shape else value

    def finite(self) -> Tensor:
        return super().finite() & (not self.skipped)

    @torch.no_grad()
    def unsharded(self) -> nn.Module:
        if self.stage < 3:
            return self.objective
        weights = {n: self._weight(t) for n, t in self.objective.state_dict(keep_vars=True).items()}
        return filled(self._blank, weights, self.objective, self.device)


def own_elements(parameter: nn.Parameter) -> tuple[int, int]:
    """The first element and the number of elements of this rank's part of what ZeRO-3 has partitioned."""
    size = parameter.ds_tensor.numel()
    first = min(collectives.rank() * size, parameter.ds_numel)
    return first, min(size, parameter.ds_numel - first)


def initialize(objective: nn.Module, optimizer: torch.optim.Optimizer, stage: int):
    """DeepSpeed's engine, with what it would do by itself turned off."""
    import deepspeed
    from deepspeed import ops
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled for a minute, for inference
    options = {
        "train_micro_batch_size_per_gpu": 1,  # for its own log only, as is the next
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
        },
    }
    # DeepSpeed calls collectives by the names they had before torch 2.13.
    warnings.filterwarnings(
        "ignore", category=FutureWarning, message=r".*(all_gather_into|reduce_scatter)_tensor.*"
    )
    engine, *_ = deepspeed.initialize(
        model=objective, optimizer=optimizer, config=options, dist_init_required=False
    )
    return engine
