"""All communication between ranks. On one process every function here is the identity.

Tensors of the training step use the engine's group (NCCL on GPUs). Everything else uses a gloo group on the
CPU, whose timeout is hours: the other ranks wait there while rank 0 evaluates or writes.
"""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data_pipelines.common.errors import SharedError, UserError
from data_pipelines.common.paths import refused_paths
from data_pipelines.pinned import on_device

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

Value = TypeVar("Value")

_cpu_group: "dist.ProcessGroup | None" = None


def open_cpu_group() -> None:
    """Makes the group of the CPU. Every rank calls it once, after accelerate has made its group."""
    global _cpu_group
    if world_size() > 1:
        _cpu_group = dist.new_group(backend="gloo", timeout=timedelta(hours=12))


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this rank."""
    return dist.get_rank() if world_size() > 1 else 0


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """The mean over ranks of a tensor without gradient; in place where there are several ranks."""
    if world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks of a tensor without gradient; in place where there are several ranks."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(tensor: Tensor) -> Tensor:
    """The maximum over ranks of a tensor without gradient; in place where there are several ranks."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def reduce_scatter(rows: Tensor) -> Tensor:
    """The sum over ranks of rows [world * n, ...] without gradient; rank r gets [n, ...] from row r * n."""
    if world_size() == 1:
        return rows
    total = torch.empty_like(rows[: len(rows) // world_size()])
    scatter = vars(dist).get("reduce_scatter_single")  # its name since torch 2.13
    (scatter or dist.reduce_scatter_tensor)(total, rows.contiguous())
    return total


def all_gather(rows: Tensor) -> Tensor:
    """All ranks' rows [n, ...], equally many on each, in the order of the ranks: [world * n, ...].

    Differentiable: the gradient of a rank's rows is the sum over the losses of all ranks. Where the ranks'
    gradients are averaged afterwards, that is the gradient of the mean of their losses.
    """
    return _AllGather.apply(rows) if world_size() > 1 else rows


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        everyones = rows.new_empty(world_size() * len(rows), *rows.shape[1:])
        gather = vars(dist).get("all_gather_single")  # its name since torch 2.13
        (gather or dist.all_gather_into_tensor)(everyones, rows.contiguous())
        return everyones

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def unshuffle(rows: Tensor, order: np.ndarray | None, first: int) -> Tensor:
    """Returns rows [n, ...] that were computed in a shuffled order to the ranks and places of their images.

    Args:
        order: int64 [batch], the place in the global batch of the image in each slot; None: not shuffled.
        first: the place of this rank's first image; its n images are consecutive.

    Rows are sent, without gradient, only where the order mixes ranks; it then mixes all of them.
    """
    if order is None:
        return rows
    slots = np.argsort(order)[first : first + len(rows)]
    if slots.min() >= first and slots.max() < first + len(rows):
        slots = slots - first
    else:
        rows = all_gather(rows)
    return rows[on_device(slots, rows.device)]


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that FSDP2 has sharded, as a view; any other tensor itself."""
    if world_size() == 1:
        return tensor
    from torch.distributed.tensor import DTensor  # takes a second, which one process does not pay

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def store() -> "Store":
    """The key-value store of the process group: the launcher's, or rank 0's where there is none."""
    return dist.distributed_c10d._get_default_store()


def peer_lost(error: BaseException) -> str | None:
    """The message where an error means that another rank has ended; None for any other error.

    Any library may raise such an error.
    """
    if not isinstance(error, dist.DistError) and not (
        "gloo" in str(error) and isinstance(error, RuntimeError)
    ):
        return None
    reason = re.sub(r"^\[\S+\] ", "", str(error).partition("\n")[0]).partition(". ")[0]
    return f"rank {rank()}: another rank has gone ({reason}); its own last line says why"


def barrier() -> None:
    """Waits for all ranks."""
    if world_size() > 1:
        dist.barrier(group=_cpu_group)


def broadcast_object(value: Value) -> Value:
    """Rank 0's value of a small object, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_cpu_group)
    return box[0]


def broadcast_bytes(tensor: Tensor, source: int) -> None:
    """Fills a contiguous CPU tensor of any type with the bytes of that of rank `source`, in place."""
    if world_size() > 1 and tensor.numel():
        dist.broadcast(tensor.view(-1).view(torch.uint8), src=source, group=_cpu_group)


def run_on_main(function: Callable[[], Value]) -> Value:
    """Runs a function on rank 0 and returns its value, a small object, on every rank.

    Raises:
        SharedError: on every rank, where it raised a UserError: no rank waits for one that has ended.
    """
    value: Any = None
    mistake: str | None = None
    if rank() == 0:
        try:
            with refused_paths():
                value = function()
        except UserError as error:
            mistake = str(error)
    value, mistake = broadcast_object((value, mistake))
    if mistake is not None:
        raise SharedError(mistake)
    return value


def run_on_all(function: Callable[[], Value]) -> list[Value]:
    """Runs a function on every rank and returns all values, small objects, in the order of the ranks.

    Raises:
        SharedError: on every rank, the UserErrors of all ranks. Where the function raised something else on a
            rank, that is raised there, and this on the others.
    """
    value: Any = None
    mistake: str | None = None
    other_error: Exception | None = None
    try:
        with refused_paths():
            value = function()
    except UserError as error:
        mistake = str(error)
    except Exception as error:  # sent before it is raised: the others would wait for this rank
        other_error, mistake = error, f"rank {rank()}: {error!r}"
    outcomes = [(value, mistake)] * world_size()
    if world_size() > 1:
        dist.all_gather_object(outcomes, (value, mistake), group=_cpu_group)
    if other_error is not None:
        raise other_error
    if mistakes := dict.fromkeys(mistake for _, mistake in outcomes if mistake is not None):
        raise SharedError("; ".join(mistakes))
    return [value for value, _ in outcomes]


def gather_to_main(rows: Tensor) -> Tensor | None:
    """All ranks' rows [n_r, ...] in the order of the ranks, on the CPU of rank 0; None elsewhere."""
    rows = rows.cpu()
    if world_size() == 1:
        return rows
    counts = torch.zeros(world_size(), dtype=torch.int64)
    counts[rank()] = len(rows)
    dist.all_reduce(counts, group=_cpu_group)
    padded = torch.zeros(int(counts.max()), *rows.shape[1:], dtype=rows.dtype)  # gather requires equal shapes
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world_size())] if rank() == 0 else None
    dist.gather(padded, parts, dst=0, group=_cpu_group)
    if parts is None:
        return None
    return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])


def start_all_reduce(number: Tensor) -> "dist.Work | None":
    """Begins the sum over ranks of a CPU tensor, in place; call `wait` of what is returned."""
    return dist.all_reduce(number, group=_cpu_group, async_op=True) if world_size() > 1 else None
