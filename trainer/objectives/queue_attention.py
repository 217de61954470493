"""The attention of queries to a shard of keys, by torch's fused kernel or by plain products.

Its output is the softmax-weighted mean of the keys. `momentum_queue` makes the gradient of that, and the loss
of the log-sum-exp, so a kernel that computes either wrongly trains something else without a word: on a GPU
that torch's kernels were not built for, they have returned zeros. So on CUDA the fused kernel is compared
once, before it is used.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from data_pipelines.common.shortage import shortage

# Numbers that exist at a time where the fused kernel cannot take the shard as it is: those of a CPU fit its
# caches, and old runs added in pieces of that size; a GPU would only launch more often.
PIECE, PIECE_ON_CUDA = 2**21, 2**25
COMPARED = ("cuda",)  # types of devices on which the fused kernel is compared before it is used
TOLERANCE = 1e-3  # of the largest value; float32 with TF32's products stays below
Kernel = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]

_faults: dict[tuple[torch.device, torch.dtype, int], str | None] = {}


def path(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """How log-sum-exps are computed: `fused`, by torch's attention kernel, or `chunked`, by plain products.

    Args:
        dtype: that of the computation: float64 where queries or keys are, else float32.

    On CUDA it is the memory-efficient kernel, for float32 and widths that are a multiple of 8, where it has
    no fault.
    """
    offered = has_kernel(device, dtype, width) and fault_of_fused(device, dtype, width) is None
    return "fused" if offered else "chunked"


def has_kernel(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether torch has a fused kernel for this computation; whether it is right is another question."""
    if device.type == "cpu":
        return True
    cuda = device.type == "cuda" and torch.version.cuda is not None
    return cuda and dtype == torch.float32 and width % 8 == 0


# ---- whether the fused kernel is right -------------------------------------------------------------


def fault_of_fused(device: torch.device, dtype: torch.dtype, width: int) -> str | None:
    """What is wrong with the fused kernel, in words; None: nothing, or it is not to be compared.

    It is compared at the first call for a device, type and width, which waits for the device; later calls
    look it up. Tensors without numbers (fake ones, a trace of torch.compile) decide nothing.
    """
    if device.type not in COMPARED or not has_kernel(device, dtype, width):
        return None
    key = device, dtype, width
    if key not in _faults:
        if torch.compiler.is_compiling() or type(torch.empty(0)) is not Tensor:
            return None
        _faults[key] = fault(fused, device, dtype, width)
    return _faults[key]


@torch.no_grad()
def fault(kernel: Kernel, device: torch.device, dtype: torch.dtype, width: int) -> str | None:
    """How a kernel deviates from plain products in float64 on the CPU, in words; None: within TOLERANCE.

    The mean of the keys, of which the gradient is made, is compared beside the log-sum-exp, of 65 queries (no
    whole number of the kernel's blocks) with 2,048 keys.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(rows, width, generator=generator) for rows in (65, 2048))
    queries, keys = (nn.functional.normalize(rows, dim=1).to(dtype) for rows in drawn)
    expected = chunk(queries.double(), keys.double(), 0.2)
    try:
        with torch.autocast(device.type, enabled=False):
            results = [result.double().cpu() for result in kernel(queries.to(device), keys.to(device), 0.2)]
    except RuntimeError as error:
        if shortage(error):
            raise
        return f"fails ({str(error).strip().partition(chr(10))[0][:200]})"
    for name, result, right in zip(("gradient", "log-sum-exp"), results, expected, strict=True):
        deviation = ((result - right).abs().max() / right.abs().max()).item()
        if not deviation <= TOLERANCE:  # also where it is not a number
            return f"computes a wrong {name} (off by {deviation:.2g} of the largest value)"
    return None


# ---- the kernels -----------------------------------------------------------------------------------


def attend(
    queries: Tensor, shard: Tensor, temperature: float, way: str | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax-weighted mean of a shard's keys, [B, D], and log-sum-exp of the scores, [B].

    Args:
        queries: [B, D] in float32 or float64.
        shard: keys [N, D], N at least 1: with none, torch's kernel on CPU ends the process, and that of CUDA
            returns plus infinity.
        way: the name that `path` returned, or the other.

    Keys in another type than the queries' are converted a piece at a time: torch's kernel for bf16 would
    round queries and weights too (measured on CPU: the mean loss off by 0.06, in place of 0.00003).
    """
    way = way or path(shard.device, queries.dtype, shard.shape[1])
    if way == "fused" and shard.dtype == queries.dtype:
        return fused(queries, shard, temperature)
    kernel = fused if way == "fused" else chunk
    numbers = shard.shape[1] if way == "fused" else max(queries.shape)  # a key
    rows = max(1, (PIECE_ON_CUDA if shard.is_cuda else PIECE) // numbers)
    mean, log = torch.zeros_like(queries), queries.new_full((len(queries),), -math.inf)
    for keys in shard.split(rows):
        part, part_log = kernel(queries, keys.to(queries.dtype), temperature)
        both = torch.logaddexp(log, part_log)
        mean = mean * (log - both).exp()[:, None] + part * (part_log - both).exp()[:, None]
        log = both
    return mean, log


def chunk(queries: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`attend` by plain products: the scores [B, N] exist."""
    scores = queries @ keys.T / temperature
    log = scores.logsumexp(1)
    return (scores - log[:, None]).exp_() @ keys, log


def fused(queries: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`attend` by one call of torch's attention, which also returns the log-sum-exp.

    A kernel works on a block of queries at a time, so a few queries against many keys would leave most of the
    processor idle: the keys are cut into parts, which stand in the place of the batch, and combined.
    """
    blocks = 128 * torch.get_num_threads() if keys.device.type == "cpu" else 2**14
    wanted = max(1, min(blocks // len(queries), len(keys) // 1024))
    parts = math.gcd(len(keys), 1 << (wanted.bit_length() - 1))
    k = keys.view(parts, 1, -1, keys.shape[1])
    q = queries.expand(parts, 1, -1, -1)
    scale = 1 / temperature
    if keys.device.type == "cpu":
        mean, log = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, k, scale=scale)
    else:
        mean, log, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, k, None, True, scale=scale
        )
    mean, log = mean[:, 0], log[:, 0, : len(queries)]  # the kernel of CUDA pads the latter
    if parts == 1:
        return mean[0], log[0]
    both = log.logsumexp(0)
    return ((log - both).exp()[:, :, None] * mean).sum(0), both
