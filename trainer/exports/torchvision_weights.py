"""ResNets under torchvision's names, as others trained them, read and written as exported encoders.

Reads weights with torchvision's names wherever they lie in a file: behind prefixes (`module.encoder_q.`,
`backbone.`, `_orig_mod.`), in dicts (`state_dict`, `model`), or numbered as in nn.Sequential. Key encoders,
queues, projections and classifiers are left out. Writes a file for `trainer.exports.encoder.load_encoder`.
"""

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from data_pipelines.common.errors import UserError
from data_pipelines.views import Normalize
from trainer.exports.encoder import export
from trainer.exports.tensors import difference, no_weights, not_finite, prefixes, read_tensors
from trainer.networks.build import build_encoder

IMAGENET = Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
SKELETON = ["conv1.weight", "bn1.weight", "layer4.0.conv1.weight"]
# The children with weights of torchvision's ResNet, by number in nn.Sequential(*resnet.children()).
CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
SEQUENTIAL = ["0.weight", "1.weight", "7.0.conv1.weight"]  # SKELETON there
OF_THE_NETWORK = re.compile(r"(conv|bn|layer|downsample|stem)[0-9]*\.")  # all else is a head, and left out
# In the prefix of a network that follows the one that is trained.
AVERAGED = re.compile(r"(encoder_k|key_encoder|momentum|(?<![a-z])ema(?![a-z])|target|teacher)")
BLOCKS = {(False, 2): 18, (False, 6): 34, (True, 6): 50, (True, 23): 101}  # (bottlenecks, in layer3) -> depth


def read(path: Path | str, prefix: str | None = None) -> dict[str, Tensor]:
    """The weights of a ResNet under torchvision's names, without classifiers and projections.

    prefix: what precedes the names of the network in the file; None: the one network in it, and beside a
    momentum network or a moving average the one that was trained.

    Raises:
        UserError: the file cannot be read, or holds no such network, or several.
    """
    tensors = read_tensors(path)
    networks = dict.fromkeys(prefixes(tensors, SKELETON), False)
    networks |= dict.fromkeys(prefixes(tensors, SEQUENTIAL), True)
    at = _chosen(path, tensors, list(networks), prefix)
    weights = {name.removeprefix(at): tensor for name, tensor in tensors.items() if name.startswith(at)}
    if networks[at]:
        weights = {_named(name): tensor for name, tensor in weights.items()}
    return {name: tensor for name, tensor in weights.items() if OF_THE_NETWORK.match(name)}


def _chosen(path: Path | str, tensors: dict[str, Tensor], networks: list[str], prefix: str | None) -> str:
    """The prefix of the network to read. Raises UserError where it is none of `networks`, or is not known."""
    if not networks:
        begin = ", ".join(name or "one tensor without a name" for name in sorted(tensors)[:3])
        raise UserError(
            f"{path}: no ResNet of torchvision's names in it; expected conv1.weight, layer4.0.conv1.weight … "
            f"after any prefix, but it holds {f'{begin} …' if begin else 'no tensor at all'}"
        )
    listed = ", ".join(f"prefix={at}" for at in networks)
    if prefix is not None:
        for at in (prefix, f"{prefix}."):
            if at in networks:
                return at
        raise UserError(f"{path}: no ResNet under prefix={prefix}; expected {listed}")
    trained = [at for at in networks if not AVERAGED.search(at)] if networks[1:] else networks
    if len(trained) != 1:
        raise UserError(f"{path}: {len(networks)} ResNets in it; choose one with {listed}")
    return trained[0]


def _named(name: str) -> str:
    """torchvision's name of a tensor of nn.Sequential(*resnet.children())."""
    number, _, rest = name.partition(".")
    return f"{CHILDREN.get(number, number)}.{rest}"


def encoder_options(weights: dict[str, Tensor], size: int) -> dict:
    """The options from which `build_encoder` builds the network of these weights, for images of `size` px.

    Raises:
        UserError: it is none of ResNet-18, 34, 50 and 101.
    """
    blocks = len({name.split(".")[1] for name in weights if name.startswith("layer3.")})
    depth = BLOCKS.get(("layer1.0.conv3.weight" in weights, blocks))
    if depth is None:
        raise UserError(f"the ResNet has {blocks} blocks in layer3; expected that of depth 18, 34, 50 or 101")
    if weights["conv1.weight"].dim() != 4:
        raise UserError(
            f"conv1.weight has the shape {list(weights['conv1.weight'].shape)}; expected 4 dimensions"
        )
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


def convert(source: str, target: str, size: int = 224, prefix: str | None = None) -> None:
    """Writes the network of `source` as an exported encoder, for images normalised as ImageNet's are.

    Raises:
        UserError: it cannot be read or written, is of other layers than ours, or not finite.
    """
    weights = {n: w for n, w in read(source, prefix).items() if not n.endswith("num_batches_tracked")}
    if why := no_weights(weights):
        raise UserError(f"{source}: {why}")
    try:
        options = encoder_options(weights, size)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build_encoder(options).state_dict().items()}
    if why := difference(shapes, weights):
        raise UserError(
            f"{source}: no plain ResNet-{options['depth']}: {why}; wide ResNets and ResNeXts are not read"
        )
    weights = {name: tensor.float() for name, tensor in weights.items()}
    if name := not_finite(weights):
        raise UserError(
            f"{source}: {name} holds NaN or infinity; take weights from before that, or other ones"
        )
    metadata = {
        "encoder": json.dumps(options),
        "normalize": IMAGENET.model_dump_json(),
        "from": Path(source).name,
    }
    export(Path(target), weights, metadata, key="to=")
