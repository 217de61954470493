"""An encoder as one file: `load_encoder` reads what a run, or an import of others' weights, has exported."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import cannot_write, replacing
from trainer.checkpoints.format import write_tensors
from trainer.checkpoints.save import snapshot
from trainer.exports.tensors import difference, not_finite, prefixes, read_safetensors
from trainer.networks.build import build_encoder
from trainer.networks.encoder import Encoder


def load_encoder(path: Path | str) -> Encoder:
    """An exported encoder in evaluation mode: `load_encoder("…/export/encoder.safetensors")(images)["y"]`.

    Images are [n, 3, size, size], normalised as the file's metadata entry `normalize` says; `y` is
    [n, encoder.widths["y"]]. Nothing in the file is executed.

    Raises:
        UserError: the file is missing, damaged, no export of this program, or holds NaN or infinity.
    """
    weights, metadata = read_safetensors(path, "exported encoder")
    if "encoder" not in metadata:
        raise UserError(
            f"{path}: no exported encoder (no entry `encoder` in its metadata); others' ResNets are "
            f"imported by python -m trainer.exports.torchvision_resnet from={path} to=FILE"
        )
    try:
        options = json.loads(metadata["encoder"])
        encoder = build_encoder(options)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"{path}: no exported encoder ({why}); expected export/encoder.safetensors") from None
    shapes = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    if len(at := prefixes(weights, shapes)) == 1:
        weights = {name.removeprefix(at[0]): tensor for name, tensor in weights.items()}
    if differing := difference(shapes, weights):
        raise UserError(f"{path}: no exported encoder ({differing}); expected export/encoder.safetensors")
    if spoilt := not_finite(weights):
        raise UserError(f"{path}: {spoilt} holds NaN or infinity; export it again from an earlier checkpoint")
    encoder.to(next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point()))
    encoder.load_state_dict(weights)
    return encoder.eval().requires_grad_(False)


def export(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str], key: str = "outputs="
) -> None:
    """Writes whole tensors as one safetensors file, which is complete or not there.

    key: what names another place, for a message.

    Raises:
        UserError: the file cannot be written.
    """
    copies = {name: rows.rows for name, rows in snapshot(tensors, 0, 1).parts.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            write_tensors(temporary, copies, {"format": "pt"} | metadata)
    except OSError as error:
        raise cannot_write(path, error, key) from error
