"""From the options of an encoder or a critic to the network; an unknown kind is a KeyError."""

from collections.abc import Callable

from trainer.networks.dim_alexnet import DimAlexNet, FoldedAlexNet
from trainer.networks.dim_encoder import DimEncoder
from trainer.networks.encoder import Encoder
from trainer.networks.folded_resnet import FoldedResNet
from trainer.networks.heads import Concat, Critic, EncodeAndDot, GlobalEncodeAndDot
from trainer.networks.nvae import NvaeEncoder
from trainer.networks.resnet import ResNet
from trainer.recipe.critics import ConcatCritic, CriticOptions, DotCritic

ENCODERS: dict[str, type[Encoder]] = {
    "dim": DimEncoder,
    "dim_alexnet": DimAlexNet,
    "folded_alexnet": FoldedAlexNet,
    "folded_resnet": FoldedResNet,
    "resnet": ResNet,
    "nvae": NvaeEncoder,
}


def build_encoder(options: dict) -> Encoder:
    """An encoder from `Pretrain.encoder_options`, or from the same values in an exported file.

    Raises:
        ValueError: its sizes do not fit the images; the text begins with the argument that does not.
    """
    return ENCODERS[options["kind"]](**{name: value for name, value in options.items() if name != "kind"})


# ---- critics: one builder a kind, for pairs with a location and for pairs with a whole image -------


def _local_dot(options: DotCritic, bound: str, encoder: Encoder, norm: str, group: int) -> Critic:
    y, score = encoder.widths["y"], options.score_for(bound)
    return EncodeAndDot(encoder.local_channels, y, options.units, score, norm, group)


def _local_concat(options: ConcatCritic, bound: str, encoder: Encoder, norm: str, group: int) -> Critic:
    return Concat(encoder.local_channels, encoder.widths["y"], options.units)


def _global_dot(options: DotCritic, bound: str, encoder: Encoder) -> Critic:
    tail, width = encoder.tail()
    return GlobalEncodeAndDot(tail, width, encoder.widths["y"], options.units, options.score_for(bound))


def _global_concat(options: ConcatCritic, bound: str, encoder: Encoder) -> Critic:
    features = encoder.local_channels * encoder.local_side**2
    return Concat(features, encoder.widths["y"], options.units, whole=True)


LOCAL_CRITICS: dict[str, Callable[..., Critic]] = {"dot": _local_dot, "concat": _local_concat}
GLOBAL_CRITICS: dict[str, Callable[..., Critic]] = {"dot": _global_dot, "concat": _global_concat}


def build_local_critic(options: CriticOptions, bound: str, encoder: Encoder, norm: str, group: int) -> Critic:
    """The critic of y against the features of the local map, for a bound on mutual information."""
    return LOCAL_CRITICS[options.kind](options, bound, encoder, norm, group)


def build_global_critic(options: CriticOptions, bound: str, encoder: Encoder) -> Critic:
    """The critic of y against whole images.

    Raises:
        ValueError: the encoder has no `tail` for its local map.
    """
    return GLOBAL_CRITICS[options.kind](options, bound, encoder)
