"""What a step does on CUDA tensors: launches, bytes, copies between devices, waits of the host."""

import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import ROOT

WAITS = {  # whose result has a value or a size that the host must know
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "_unique2",
    "unique_dim",
}
# Of torch.use_deterministic_algorithms: without a deterministic kernel, or with one only where that is on.
NONDETERMINISTIC = {
    "_adaptive_avg_pool2d_backward",
    "_ctc_loss_backward",
    "_efficient_attention_backward",
    "_flash_attention_backward",
    "_scaled_dot_product_efficient_attention_backward",
    "_scaled_dot_product_flash_attention_backward",
    "adaptive_max_pool2d_backward",
    "bincount",
    "cumsum",
    "embedding_dense_backward",
    "grid_sampler_2d_backward",
    "histc",
    "index_add",
    "index_add_",
    "index_reduce_",
    "kthvalue",
    "max_pool2d_with_indices_backward",
    "put_",
    "reflection_pad2d_backward",
    "scatter_add",
    "scatter_add_",
    "scatter_reduce",
    "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward",
}
ACCUMULATING = {"index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach"}
COPIES = {"_to_copy", "copy_"}
ON_MAPS = {
    *("convolution", "convolution_backward", "native_batch_norm", "cudnn_batch_norm"),
    *("infomax::normalize_groups", "infomax::normalize_groups_backward"),
}


class Spy(TorchDispatchMode):
    """Counts what runs on CUDA tensors under it, and describes what should not.

    Attributes:
        launches: calls by operation; neither views nor allocations. A custom operation is one.
        bytes: what these calls read and write, each argument and result once a call.
        copies: calls by "place in our code: pinned", or what else the copy from the host was.
        faults: what must not be: waits of the host, mixed devices, maps that are not channels_last.
        nondeterministic: calls by operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def clear(self) -> None:
        self.launches, self.copies = Counter[str](), Counter[str]()
        self.faults, self.nondeterministic = Counter[str](), Counter[str]()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        read = list(tensors((args, kwargs)))
        if (name in WAITS and on_cuda(read)) or masked(name, args):
            self.faults[f"the host waits: {name} at {place()}"] += 1
        result = func(*args, **kwargs)
        written = list(tensors(result))
        if name in COPIES and len({t.device.type for t in (*read, *written)}) > 1:
            self._copy(args[1] if name == "copy_" else args[0], args, kwargs, func)
        elif on_cuda(read) and not all(t.is_cuda for t in read):
            self.faults[f"devices are mixed: {name} at {place()}"] += 1
        if on_cuda([*read, *written]) and not free(func, name, args):
            self.launches[name] += 1
            self.bytes += sum(t.numel() * t.element_size() for t in (*read, *written))
            if name in NONDETERMINISTIC or (name in ACCUMULATING and True in args[3:4]):
                self.nondeterministic[name] += 1
            if name in ON_MAPS and not all(map(channels_last, written)):
                self.faults[f"not channels_last: {name} at {place()}"] += 1
        return result

    def _copy(self, source: Tensor, args: Any, kwargs: Any, func: Any) -> None:
        """A copy between the host and the device."""
        waits = not (kwargs.get("non_blocking") or (func._schema.name == "aten::copy_" and True in args[2:]))
        if source.is_cuda:
            if waits or not getattr(args[0], "pinned", False):
                self.faults[f"the host waits: a copy from the device at {place()}"] += 1
            return
        pinned = getattr(source, "pinned", False)
        kind = "pageable" * (not pinned) or "waited for" * waits or "pinned"
        self.copies[f"{place()}: {kind}"] += 1


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors among arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def on_cuda(measured: Iterable[Tensor]) -> bool:
    return any(tensor.is_cuda for tensor in measured)


def masked(name: str, args: Any) -> bool:
    """Whether elements are chosen by a mask on the device: the result's size is the mask's sum."""
    if name not in {"index", *ACCUMULATING}:
        return False
    return any(t.is_cuda and t.dtype in (torch.bool, torch.uint8) for t in tensors(args[1]))


def free(func: Any, name: str, args: Any) -> bool:
    """Whether a call launches nothing: a view, an allocation, or what only a fake tensor costs.

    Autograd takes a gradient over as it is; a fake one has one more reference, so it is copied. Where the
    layouts differ it would be copied on a device too.
    """
    if func.namespace == "prim" or name in ALLOCATIONS:
        return True
    if any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
        return True
    if name == "copy_" and (node := torch._C._current_autograd_node()) is not None:
        return "AccumulateGrad" in node.name() and args[0].stride() == args[1].stride()
    return False


def channels_last(tensor: Tensor) -> bool:
    """Of a map [n, C, H, W] with more than one channel and pixel; anything else counts as such."""
    if tensor.dim() != 4 or tensor.shape[1] == 1 or tensor.shape[2:].numel() == 1:
        return True
    return tensor.is_contiguous(memory_format=torch.channels_last)


def place() -> str:
    """The innermost function of the packages that is running: "trainer/objectives/moco.py forward"."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("trainer", "data_pipelines"):
            return f"{path.relative_to(ROOT)} {frame.name}"
    return "outside of the packages"
