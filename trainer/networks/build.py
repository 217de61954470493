"""From an encoder's options to the encoder."""

from torch import nn

from trainer.networks.dim_alexnet import DimAlexNet, FoldedAlexNet
from trainer.networks.dim_encoder import DimEncoder
from trainer.networks.folded_resnet import FoldedResNet
from trainer.networks.nvae import NvaeEncoder
from trainer.networks.resnet import ResNet
from trainer.recipe.schema import Pretrain

ENCODERS = {
    "dim": DimEncoder,
    "dim_alexnet": DimAlexNet,
    "folded_alexnet": FoldedAlexNet,
    "folded_resnet": FoldedResNet,
    "resnet": ResNet,
    "nvae": NvaeEncoder,
}


def build_encoder(options: dict) -> nn.Module:
    """An encoder from `encoder_options`.

    It has `local_channels`, `local_side` and `widths`, the features that evaluation reads; called with images
    it returns these and the `local` map; `tail()` is a fresh network of its layers behind that map.

    Raises:
        ValueError: its sizes do not fit the images.
    """
    return ENCODERS[options["kind"]](**{name: value for name, value in options.items() if name != "kind"})


def encoder_options(recipe: Pretrain) -> dict:
    """All that an encoder is built from, as plain values: exported with its weights."""
    options = recipe.encoder.model_dump()
    return options | {"size": recipe.data.size, "group": recipe.groups.norm}
