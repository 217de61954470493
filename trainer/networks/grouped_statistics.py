"""Normalisation by each group's mean and variance, as one operation: three ways to compute the same.

Triton compiles its kernels at their first use, by a C compiler that not every machine has, for GPUs that it
may not know. So they are compared once with torch's operations, before they are used.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from data_pipelines.common.shortage import shortage

Normalize = Callable[[Tensor, Tensor, Tensor, int, float], tuple[Tensor, Tensor]]
COMPARED = ("cuda",)  # types of devices on which kernels are compared before they are used
TOLERANCE = 1e-4  # of the largest value
_chosen: str | None = None  # by `computed_by`
_faults: dict[torch.device, str | None] = {}


def normalize_groups(x: Tensor, weight: Tensor, bias: Tensor, size: int, eps: float) -> tuple[Tensor, Tensor]:
    """Batch-norm of consecutive parts of x, each of `size` rows and by itself.

    Args:
        x: [rows, features, ...], of any float type; its memory format stays.
        weight: [features], in float32 where x is bf16.
        bias: [features].
        size: rows of a part. The last part may have fewer, which costs a launch a part on any device.
        eps: added to the variance.

    Returns:
        The output, like x, and the sum over groups of their means and unbiased variances, [2, features] in
        the type of weight, without gradient.
    """
    if len(x) % size:
        return _loop(x, weight, bias, size, eps)
    return WAYS[_chosen or way(x.device)](x, weight, bias, size, eps)


def way(device: torch.device) -> str:
    """What computes on a device: a key of `WAYS`.

    On a CPU torch's kernel, group by group, is fastest. On a GPU that is ten launches a group, and copies of
    all maps; Triton's kernels read each map twice, in whatever number of groups.
    """
    if device.type == "cpu":
        return "loop"
    offered = device.type == "cuda" and _has_triton() and fault_of_kernels(device) is None
    return "kernels" if offered else "vectorized"


def fault_of_kernels(device: torch.device) -> str | None:
    """What is wrong with the kernels on a device, in words; None: nothing, or they are not to be compared.

    The first call compares, and waits for the device; later ones look it up. Tensors without numbers (fake
    ones, a trace of torch.compile) decide nothing.
    """
    if device.type not in COMPARED or not _has_triton():
        return None
    if device not in _faults:
        if torch.compiler.is_compiling() or type(torch.empty(0)) is not Tensor:
            return None
        _faults[device] = fault(_kernels, device)
    return _faults[device]


def fault(kernels: Normalize, device: torch.device) -> str | None:
    """How kernels deviate from torch's operations in float64 on the CPU, in words; None: within TOLERANCE."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 70, 5, 3, generator=generator).contiguous(memory_format=torch.channels_last)
    drawn = x, *(torch.rand(70, generator=generator) + 0.5 for _ in range(2))

    def results(compute: Normalize, dtype: torch.dtype, where: torch.device) -> list[Tensor]:
        x, weight, bias = (one.to(where, dtype).requires_grad_() for one in drawn)
        with torch.enable_grad(), torch.autocast(where.type, enabled=False):
            output, total = compute(x, weight, bias, 3, 1e-5)
            gradients = torch.autograd.grad((output * output.detach().cos()).sum(), (x, weight, bias))
        return [one.double().cpu() for one in (output.detach(), total, *gradients)]

    expected = results(_vectorized, torch.float64, torch.device("cpu"))
    try:
        actual = results(kernels, torch.float32, device)
    except Exception as error:  # a compiler's, a driver's
        if shortage(error):
            raise
        return f"fail ({str(error).strip().partition(chr(10))[0][:200]})"
    for one, right in zip(actual, expected, strict=True):
        apart = ((one - right).abs().max() / right.abs().max()).item()
        if not apart <= TOLERANCE:  # also where it is not a number
            return f"compute wrong values (off by {apart:.2g} of the largest)"
    return None


@contextmanager
def computed_by(name: str) -> Iterator[None]:
    """Within it one way, of `WAYS`, computes on every device. Not for several threads."""
    global _chosen
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


# ---- torch's kernel, once a group ---------------------------------------------------------------------


def _loop(x: Tensor, weight: Tensor, bias: Tensor, size: int, eps: float) -> tuple[Tensor, Tensor]:
    parts = []
    statistics = torch.zeros(2, len(weight), device=x.device, dtype=weight.dtype)
    total = torch.zeros_like(statistics)
    for part in x.split(size):
        # momentum 1 writes the group's mean and unbiased variance where the running ones would be
        mean, var = statistics
        parts.append(F.batch_norm(part, mean, var, weight, bias, True, 1.0, eps))
        total += statistics
    return torch.cat(parts), total


# ---- all groups at once, by torch's operations --------------------------------------------------------


class _Vectorized(torch.autograd.Function):
    """Reductions over [groups, n, features, ...], a view: no map is copied, whatever its memory format."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, size: int, eps: float
    ) -> tuple[Tensor, Tensor]:
        parts = _parts(x, len(x) // size, weight.dtype)
        over = _over(parts)
        var, mean = torch.var_mean(parts, over, correction=0, keepdim=True)
        n = parts.numel() // mean.numel()
        inverse = (var + eps).rsqrt()
        scaled = (parts - mean) * (inverse * _along(weight, parts))
        output = torch.empty_like(x)  # no view of another tensor: activations change it in place
        torch.add(scaled, _along(bias, parts), out=output.unflatten(0, (len(mean), -1)))
        total = torch.stack((mean.flatten(1).sum(0), var.flatten(1).sum(0) * (n / (n - 1) if n > 1 else 1.0)))
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.mark_non_differentiable(total)
        return output, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        groups = len(mean)
        gradient, parts = (_parts(one, groups, weight.dtype) for one in (of_output, x))
        over = _over(parts)
        n = parts.numel() // mean.numel()
        normal = (parts - mean) * inverse
        of_bias = gradient.sum(over, keepdim=True)
        of_weight = (gradient * normal).sum(over, keepdim=True)
        of_x = (gradient - of_bias / n - normal * (of_weight / n)) * (inverse * _along(weight, parts))
        sums = (one.flatten(1).sum(0) for one in (of_weight, of_bias))
        return of_x.flatten(0, 1).to(x.dtype), *sums, None, None


def _parts(x: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """[groups · n, features, ...] -> [groups, n, features, ...], in the precision of the statistics."""
    return x.unflatten(0, (groups, -1)).to(dtype)


def _over(parts: Tensor) -> tuple[int, ...]:
    """The dimensions whose values a feature's statistics are taken over."""
    return (1, *range(3, parts.ndim))


def _along(values: Tensor, parts: Tensor) -> Tensor:
    """[features], to be multiplied with parts [groups, n, features, ...]."""
    return values.view(-1, *[1] * (parts.ndim - 3))


def _vectorized(x: Tensor, weight: Tensor, bias: Tensor, size: int, eps: float) -> tuple[Tensor, Tensor]:
    return _Vectorized.apply(x, weight, bias, size, eps)


# ---- all groups at once, by kernels -------------------------------------------------------------------


def _kernels(x: Tensor, weight: Tensor, bias: Tensor, size: int, eps: float) -> tuple[Tensor, Tensor]:
    from trainer.networks.grouped_kernels import normalize  # triton is there on machines with a GPU alone

    return normalize(x, weight, bias, size, eps)


WAYS: dict[str, Normalize] = {"loop": _loop, "vectorized": _vectorized, "kernels": _kernels}
