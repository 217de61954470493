"""ResNets under torchvision's names, as others trained them, read and written as exported encoders.

Reads checkpoints of facebookresearch/moco (`module.encoder_q.*`; key encoder, queue and projection are left
out) and plain weights with torchvision's names, and writes a file for `trainer.exports.encoder.load_encoder`.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from data_pipelines.common.errors import UserError
from data_pipelines.views import Normalize
from trainer.exports.encoder import export
from trainer.networks.build import build_encoder

QUERY = "module.encoder_q."
IMAGENET = Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
BLOCKS = {(False, 2): 18, (False, 6): 34, (True, 6): 50, (True, 23): 101}  # (bottlenecks, in layer3) -> depth


def read(path: Path | str) -> dict[str, Tensor]:
    """The weights of a ResNet under torchvision's names, without its classifier or projection `fc`.

    Nothing but tensors is unpickled.

    Raises:
        UserError: the file cannot be read, or holds no such network.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception:  # the bytes of another file can raise anything in the unpickler
        raise UserError(
            f"{path}: no weights can be read; expected a file of torch.save that holds tensors alone, "
            "such as a state_dict"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if any(name.startswith(QUERY) for name in tensors):
        tensors = {n.removeprefix(QUERY): tensor for n, tensor in tensors.items() if n.startswith(QUERY)}
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    if not {"conv1.weight", "bn1.weight", "layer4.0.conv1.weight"} <= weights.keys():
        raise UserError(
            f"{path}: no ResNet of torchvision's names in it; expected conv1.weight, layer4.0.conv1.weight, "
            f"or {QUERY}conv1.weight … as facebookresearch/moco saves them"
        )
    return weights


def encoder_options(weights: dict[str, Tensor], size: int) -> dict:
    """The options from which `build_encoder` builds the network of these weights, for images of `size` px.

    Raises:
        UserError: it is none of ResNet-18, 34, 50 and 101.
    """
    blocks = len({name.split(".")[1] for name in weights if name.startswith("layer3.")})
    depth = BLOCKS.get(("layer1.0.conv3.weight" in weights, blocks))
    if depth is None:
        raise UserError(f"the ResNet has {blocks} blocks in layer3; expected that of depth 18, 34, 50 or 101")
    width, _, kernel, _ = weights["conv1.weight"].shape
    return {
        "kind": "resnet",
        "depth": depth,
        "stem": "imagenet" if kernel == 7 else "cifar",
        "width": width,
        "local": "layer3",
        "y": None,
        "norm": "batch",
        "zero_init_residual": False,
        "size": size,
        "group": 32,
    }


def convert(source: str, target: str, size: int = 224) -> None:
    """Writes the network of `source` as an exported encoder, for images normalised as ImageNet's are.

    Raises:
        UserError: it cannot be read or written, or is of other layers than ours.
    """
    weights = {n: tensor for n, tensor in read(source).items() if not n.endswith("num_batches_tracked")}
    options = encoder_options(weights, size)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build_encoder(options).state_dict().items()}
    differing = {name for name in shapes.keys() | weights.keys() if shapes.get(name) != _shape(weights, name)}
    if differing:
        raise UserError(
            f"{source}: no plain ResNet-{options['depth']}: {len(differing)} tensors are missing, new or of "
            f"another shape, the first {min(differing)}; wide ResNets and ResNeXts are not read"
        )
    weights = {name: tensor.float() for name, tensor in weights.items()}
    metadata = {
        "encoder": json.dumps(options),
        "normalize": IMAGENET.model_dump_json(),
        "from": Path(source).name,
    }
    export(Path(target), weights, metadata)


def _shape(weights: dict[str, Tensor], name: str) -> torch.Size | None:
    return weights[name].shape if name in weights else None
