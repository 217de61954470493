"""The recipe's encoders: one section a kind."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from data_pipelines.common.section import Count, Positive, Section

Norm = Literal["batch", "group"]  # statistics over the images of a group, or over channels of an image


class EncoderOptions(Section):
    """What the options of every encoder answer before anything is built."""

    kind: str
    decodes: ClassVar[bool] = False  # whether the network has a decoder, so that a hybrid can use it


class DimEncoder(EncoderOptions):
    """The convolutional encoder of the Deep InfoMax paper; its defaults are the published 32-px network."""

    kind: Literal["dim"]
    channels: Annotated[list[Positive], Field(min_length=2, max_length=5)] = [64, 128, 256]
    fc: Positive = 1024
    y: Positive = 64
    norm: Norm = "batch"


class DimAlexNet(EncoderOptions):
    """The AlexNet of the Deep InfoMax paper; its defaults are the published 64-px network."""

    kind: Literal["dim_alexnet"]
    channels: Annotated[list[Positive], Field(min_length=5, max_length=5)] = [96, 192, 384, 384, 192]
    fc: Positive = 4096
    y: Positive = 64
    norm: Norm = "batch"


class FoldedAlexNet(DimAlexNet):
    """The same AlexNet over patches of 16 px, as compared with CPC on STL-10."""

    kind: Literal["folded_alexnet"]


class FoldedResNet(EncoderOptions):
    """Bottlenecks over patches of 8 px, as compared with CPC on CIFAR-10; defaults as published."""

    kind: Literal["folded_resnet"]
    depth: Literal[19, 37] = 37
    width: Positive = 64
    fc: Positive = 1024
    y: Positive = 64
    norm: Norm = "batch"


class ResNet(EncoderOptions):
    """ResNet as in torchvision. `width` is the stem's channels; `local` the stage whose map is local.

    `y: null` is the pooled features themselves: then all parameters are torchvision's.
    """

    kind: Literal["resnet"]
    depth: Literal[18, 34, 50, 101] = 50
    stem: Literal["imagenet", "cifar"] = "imagenet"
    width: Positive = 64
    local: Literal["layer1", "layer2", "layer3", "layer4"] = "layer3"
    y: Positive | None = 64
    norm: Norm = "batch"
    zero_init_residual: bool = False  # a block's last norm starts at zero


class Nvae(EncoderOptions):
    """The NVAE-style encoder, and with it its decoder; defaults are those of d2c with the paper's latent.

    `width` channels behind the stem, twice as many after each of `halvings`; `cells` before each halving,
    `tower` (the decoder: `decoder_tower`) at the latent's side. The latent has `latent` channels, half for y:
    the first half of a `map`, or a `pooled` vector of as many numbers. A stem that takes `patch` x `patch`
    pixels together makes all of it cheaper.
    """

    decodes: ClassVar[bool] = True

    kind: Literal["nvae"]
    patch: Literal[1, 2, 4, 8] = 1
    width: Positive = 128
    halvings: Count = 1
    cells: Count = 1
    tower: Count = 12
    decoder_tower: Count = 10
    expansion: Positive = 6
    latent: Positive = 6
    layout: Literal["map", "pooled"] = "map"
    norm: Norm = "batch"


Encoder = Annotated[
    DimEncoder | DimAlexNet | FoldedAlexNet | FoldedResNet | ResNet | Nvae, Field(discriminator="kind")
]
