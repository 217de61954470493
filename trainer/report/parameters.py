"""Numbers that are learned, counted in a checkpoint's manifest."""

import math

PARTS = {"encoder": "encoder", "contrast.encoder": "encoder", "decoder": "decoder"}  # a hybrid's are within
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}  # of batch-norm: no parameters


def count_parameters(tensors: dict[str, dict], diffusion: bool) -> dict[str, int]:
    """Parameters of "encoder", "decoder" and "denoiser" among the tensors of a checkpoint's manifest.

    A tensor is a parameter where the optimizer keeps a state of it. An optimizer that keeps none (SGD without
    momentum) says nothing: then all are but the statistics of batch-norm. Copies that follow by a moving
    average (`key_encoder`, `average`) are counted in neither case.

    Args:
        diffusion: whether all that is learned is a denoiser, of one network or several.
    """
    states = {
        name.split("/", 2)[2] for name in tensors if name.startswith("optimizer/") and name.count("/") > 1
    }
    counts: dict[str, int] = {}
    for name, tensor in tensors.items():
        path = name.removeprefix("model/")
        *modules, last = path.split(".")
        if path == name or (path not in states if states else last in STATISTICS):
            continue
        part = (
            _denoiser(modules)
            if diffusion
            else PARTS.get(".".join(modules[:2])) or PARTS.get(path.partition(".")[0])
        )
        if part:
            counts[part] = counts.get(part, 0) + math.prod(tensor["shape"])
    return counts


def _denoiser(modules: list[str]) -> str | None:
    return "denoiser" if modules and "average" not in modules else None
