"""The recipe's encoders: one section a kind."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from data_pipelines.common.section import Count, Positive, Section, key

NORM = "statistics over the images of a group (`groups.norm`), or over channels of one image"
Norm = Annotated[Literal["batch", "group"], Field(description=NORM)]


class EncoderOptions(Section):
    """What the options of every encoder answer before anything is built."""

    kind: str
    newer: ClassVar[tuple[str, ...]] = ()  # arguments left out where null: exports stay as they were
    to_decode: ClassVar[str] = "expected encoder.kind=nvae, or resnet with encoder.w={channels: 3}"

    @property
    def decodes(self) -> bool:
        """Whether the network has a decoder, for a hybrid to use; else `to_decode` says how to get one."""
        return False

    def arguments(self) -> dict[str, Any]:
        """What the network is built from beside the images' size and the group, as plain values."""
        values = self.model_dump()
        return {key: value for key, value in values.items() if value is not None or key not in self.newer}


class DimEncoder(EncoderOptions):
    """The convolutional encoder of the Deep InfoMax paper; its defaults are the published 32-px network."""

    kind: Literal["dim"]
    channels: Annotated[list[Positive], Field(min_length=2, max_length=5)] = key(
        [64, 128, 256],
        "width of each convolution, which halves the side; the last but one's map is local",
        "channels",
    )
    fc: Positive = key(1024, "width of the fully connected layer", "units")
    y: Positive = key(64, "width of the representation", "numbers")
    norm: Norm = "batch"


class DimAlexNet(EncoderOptions):
    """The AlexNet of the Deep InfoMax paper; its defaults are the published 64-px network.

    The third convolution's map is local.
    """

    kind: Literal["dim_alexnet"]
    channels: Annotated[list[Positive], Field(min_length=5, max_length=5)] = key(
        [96, 192, 384, 384, 192], "width of each convolution", "channels"
    )
    fc: Positive = key(4096, "width of each fully connected layer", "units")
    y: Positive = key(64, "width of the representation", "numbers")
    norm: Norm = "batch"


class FoldedAlexNet(DimAlexNet):
    """The same AlexNet over patches of 16 px, as compared with CPC on STL-10.

    The map of the last convolution, the patches put together again, is local.
    """

    kind: Literal["folded_alexnet"]  # type: ignore[assignment]  # a kind of its own, with the same keys


class FoldedResNet(EncoderOptions):
    """Bottlenecks over patches of 8 px, as compared with CPC on CIFAR-10; defaults as published."""

    kind: Literal["folded_resnet"]
    depth: Literal[19, 37] = key(37, "two blocks in each stage, or three, six and three", "layers")
    width: Positive = key(64, "width of the stem; a location has 16 times as many", "channels")
    fc: Positive = key(1024, "width of the fully connected layer", "units")
    y: Positive = key(64, "width of the representation", "numbers")
    norm: Norm = "batch"


class MapDecoder(Section):
    """The decoder of a vector y and a map w: NVAE's cells at w's side, and behind each doubling of it."""

    width: Positive = key(64, "width at the side of w, half as many after each doubling", "channels")
    cell: Literal["inverted", "residual"] = key(
        "residual", "the cells at the side of w: those of NVAE's decoder, or of its encoder, cheap on a CPU"
    )
    tower: Count = key(3, "cells at the side of w", "cells")
    expansion: Positive = key(6, "how much an inverted cell widens; behind a doubling half as much", "1")
    doublings: Count = key(
        0,
        "how often cells double the side; each place then becomes a square of the pixels that are left",
        "1",
    )
    cells: Count = key(1, "cells behind each doubling", "cells")


class DetailMap(Section):
    """A map w of details, made of the first stage's map, beside the pooled y, and a decoder of both."""

    channels: Positive = key(3, "width of w", "channels")
    halvings: Positive = key(1, "how often a convolution halves the first stage's map on the way to w", "1")
    decoder: MapDecoder = MapDecoder()


class ResNet(EncoderOptions):
    """ResNet as in torchvision; with `w` also the encoder and decoder of a hybrid."""

    newer: ClassVar[tuple[str, ...]] = ("w",)
    to_decode: ClassVar[str] = "give it one with encoder.w={channels: 3}, or choose encoder.kind=nvae"

    kind: Literal["resnet"]
    depth: Literal[18, 34, 50, 101] = key(
        50, "basic blocks in 18 and 34, bottlenecks in 50 and 101", "layers"
    )
    stem: Literal["imagenet", "cifar"] = key(
        "imagenet", "7 x 7 with stride 2 and a pooling, or 3 x 3 that keeps the side"
    )
    width: Positive = key(64, "width of the stem", "channels")
    local: Literal["layer1", "layer2", "layer3", "layer4"] = key("layer3", "the stage whose map is local")
    y: Positive | None = key(
        64,
        "width of the representation; null: the pooled features, and no parameter but torchvision's",
        "numbers",
    )
    norm: Norm = "batch"
    zero_init_residual: bool = key(False, "whether a block's last norm starts at zero")
    w: DetailMap | None = key(None, "the map w beside y; null: there is no w, and no decoder")

    @property
    def decodes(self) -> bool:
        return self.w is not None


class Nvae(EncoderOptions):
    """The NVAE-style encoder, and with it its decoder; defaults are those of d2c with the paper's latent."""

    newer: ClassVar[tuple[str, ...]] = ("y",)

    kind: Literal["nvae"]
    patch: Literal[1, 2, 4, 8] = key(
        1, "side of the squares that the stem takes together; 2 is several times as cheap", "pixels"
    )
    width: Positive = key(128, "width behind the stem, twice as many after each halving", "channels")
    halvings: Count = key(1, "how often the side is halved: the latent's is size / patch / 2^halvings", "1")
    cells: Count = key(1, "residual cells before each halving", "cells")
    tower: Count = key(12, "residual cells at the latent's side", "cells")
    decoder_tower: Count = key(10, "the decoder's cells at the latent's side", "cells")
    expansion: Positive = key(6, "how much a decoder's cell widens inside", "1")
    latent: Positive = key(6, "width of z = [y, w], even: half are y's", "channels")
    layout: Literal["map", "pooled"] = key(
        "map", "y is the first half of the latent's channels, or a vector beside a map w of as many channels"
    )
    norm: Norm = "batch"
    y: Positive | None = key(None, "width of a pooled y; null: as many numbers as w has", "numbers")

    @property
    def decodes(self) -> bool:
        return True

    @model_validator(mode="after")
    def _width_of_a_vector(self) -> "Nvae":
        if self.y is not None and self.layout == "map":
            raise ValueError(
                f"y={self.y} is the width of a vector, and with layout=map y is half of the latent's "
                "channels; leave y out, or set layout=pooled"
            )
        return self


Encoder = Annotated[
    DimEncoder | DimAlexNet | FoldedAlexNet | FoldedResNet | ResNet | Nvae, Field(discriminator="kind")
]
