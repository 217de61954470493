"""Named tensors from files of others: what wraps them, under which prefix a network lies, whether it fits.

Nothing but tensors is read: what a file would execute is refused.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_pipelines.common.errors import UserError

# What torch.compile, FSDP and activation checkpointing put into the names of the modules that they wrap.
TRANSPARENT = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
DEEPEST = 8  # dicts and lists within each other, of which the tensors are read


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """All tensors of a file of torch.save or safetensors, on the CPU; those of nested dicts by dotted names.

    In a list or tuple the name is the number.

    Raises:
        UserError: the file cannot be read, is damaged, or holds Python objects.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not head:
        raise UserError(f"{path}: is empty; expected a file of torch.save or safetensors")
    content = read_safetensors(path)[0] if head[8:] == b"{" else _read_pickle(path)
    tensors: dict[str, Tensor] = {}
    for name, tensor in _flat(content, "", DEEPEST):
        for wrapper in TRANSPARENT:
            name = name.replace(wrapper, "")
        tensors[name] = tensor
    return tensors


def read_safetensors(
    path: Path | str, expected: str = "safetensors file"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file. Raises UserError where it is none, or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (
        SafetensorError,
        ValueError,
        RuntimeError,
        AttributeError,
    ) as error:  # the last two: unknown dtypes
        why = str(error).partition("\n")[0]
        raise UserError(f"{path}: no {expected}, or one cut short ({why}); fetch or make it again") from None


def _read_pickle(path: Path | str) -> object:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # of options, which many save beside
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # the bytes of another file can raise anything in the unpickler
        why = "damaged, cut short or of another kind"
        if "Unsupported global" in str(error) or "GLOBAL" in str(error):
            why = "it holds Python objects, which are not executed"
        raise UserError(
            f"{path}: no weights can be read ({why}); expected a file of torch.save with tensors alone, such "
            "as a state_dict, or of safetensors"
        ) from None


def _flat(content: object, at: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield at, content
    elif isinstance(content, Mapping) and depth:
        for key, value in content.items():
            yield from _flat(value, f"{at}.{key}" if at else str(key), depth - 1)
    elif isinstance(content, list | tuple) and depth:
        yield from _flat(dict(enumerate(content)), at, depth)


def prefixes(names: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """The prefixes under which all of the wanted names are there, shortest first; "" is one."""
    known, (first, *rest) = set(names), wanted
    found_at = (name.removesuffix(first) for name in known if name.endswith(first))
    return sorted(
        (at for at in found_at if (not at or at.endswith(".")) and all(at + name in known for name in rest)),
        key=lambda at: (len(at), at),
    )


def difference(shapes: Mapping[str, torch.Size], weights: Mapping[str, Tensor]) -> str | None:
    """How weights differ from a network of these shapes, its first tensor by name; None where they fit."""
    differing = sorted(n for n in shapes.keys() | weights.keys() if shapes.get(n) != _shape(weights, n))
    if not differing:
        return None
    name = differing[0]
    what = f"{name} is missing"
    if name in weights:
        expected = f"expected {list(shapes[name])}" if name in shapes else "which the network does not have"
        what = f"{name} has the shape {list(weights[name].shape)}, {expected}"
    return f"{what} ({len(differing)} of {len(shapes)} tensors differ)"


def _shape(weights: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return weights[name].shape if name in weights else None


def not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None where all numbers are finite."""
    return next((name for name, tensor in weights.items() if not torch.isfinite(tensor).all()), None)


def no_weights(weights: Mapping[str, Tensor]) -> str | None:
    """Why the first tensor that is none has no weights of a network in it; None where all have some.

    They are numbers in floating point, each at its place in memory. A variance is 0 or more.
    """
    for name, tensor in weights.items():
        if tensor.is_meta:
            return f"{name} is on the device meta, without its numbers; save it from a device that has them"
        if tensor.is_nested or tensor.layout != torch.strided:
            layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            return f"{name} is a tensor of layout {layout}; expected dense weights, as of tensor.to_dense()"
        if not tensor.is_floating_point():
            return f"{name} is of {tensor.dtype}; expected weights in floating point"
        if name.endswith("running_var") and (tensor.float() < 0).any():
            return f"{name} holds {tensor.float().min():g}; expected variances, which are 0 or more"
    return None
