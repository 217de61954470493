"""An encoder as one file: `load_encoder` reads what a run, or an import of others' weights, has exported."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import cannot_write, replacing
from trainer.checkpoints.format import write_tensors
from trainer.checkpoints.save import snapshot
from trainer.networks.build import build_encoder
from trainer.networks.encoder import Encoder


def load_encoder(path: Path | str) -> Encoder:
    """An exported encoder in evaluation mode: `load_encoder("…/export/encoder.safetensors")(images)["y"]`.

    Images are [n, 3, size, size], normalised as the file's metadata entry `normalize` says; `y` is
    [n, encoder.widths["y"]]. Nothing in the file is executed.

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
    """Writes whole tensors as one safetensors file, which is complete or not there.

    Raises:
        UserError: the file cannot be written.
    """
    copies = {name: rows.rows for name, rows in snapshot(tensors, 0, 1).parts.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            write_tensors(temporary, copies, {"format": "pt"} | metadata)
    except OSError as error:
        raise cannot_write(path, error) from error
