"""An encoder as one file: what a run exports, and what others load."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import cannot_write, replacing
from trainer.checkpoints.format import write_tensors
from trainer.checkpoints.save import snapshot
from trainer.networks.build import build_encoder


def load_encoder(path: Path | str) -> nn.Module:
    """An exported encoder, ready for use: `load_encoder("…/export/encoder.safetensors")(images)["y"]`.

    It takes images [n, 3, size, size] normalised as the file's metadata entry `normalize` says.

    Raises:
        UserError: the file is missing or is not an export of this program.
    """
    try:
        with safe_open(path, framework="pt") as file:
            options = json.loads(file.metadata()["encoder"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        encoder = build_encoder(options).to(next(iter(weights.values())).dtype)
        encoder.load_state_dict(weights)
    except (
        OSError,
        SafetensorError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
    ) as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"{path}: no exported encoder ({why}); expected export/encoder.safetensors") from None
    return encoder.eval().requires_grad_(False)


def export(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """One safetensors file of whole tensors, complete or not there. Raises UserError if it cannot write."""
    copies = {name: rows.rows for name, rows in snapshot(tensors, 0, 1).parts.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            write_tensors(temporary, copies, {"format": "pt"} | metadata)
    except OSError as error:
        raise cannot_write(path, error) from error
