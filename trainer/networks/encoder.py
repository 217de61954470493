"""What an encoder is: the contract between networks, objectives and evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor, nn

Features = dict[str, Tensor]


class Encoder(nn.Module, ABC):
    """A network from images to features.

    An encoder is built from plain values (`Pretrain.encoder_options`) and knows neither recipe nor ranks. Its
    constructor raises ValueError with a text that begins with the argument that does not fit, such as
    "size=33 …"; the builder puts the recipe's section in front of it.

    Attributes:
        widths: {feature: numbers an image} of what evaluation reads, in the order of the network. `y` is the
            representation; with a decoder `w` and `z` = [y, w] stand beside it.
        maps: {feature: (channels, height, width)} of those features that are a map, flattened channel by
            channel.
        local_channels: C, channels of the local map.
        local_side: M, height and width of the local map.
    """

    widths: dict[str, int]
    maps: Mapping[str, tuple[int, int, int]] = MappingProxyType({})
    local_channels: int
    local_side: int

    @abstractmethod
    def forward(self, images: Tensor) -> Features:
        """Images [n, 3, size, size] -> `local` [n, C, M, M], and each feature of `widths` as [n, width]."""

    @abstractmethod
    def tail(self) -> tuple[nn.Module, int]:
        """Fresh layers of this network's kind behind the local map: a module [n, C, M, M] -> [n, width], and
        that width. Every call draws new weights.

        Raises:
            ValueError: the local map is too small for these layers.
        """

    @property
    def latent_size(self) -> int | None:
        """D, the numbers of z = [y, w]; None where there is no w."""
        return self.widths["y"] + self.widths["w"] if "w" in self.widths else None

    def decoder(self) -> nn.Module | None:
        """A fresh decoder from y [n, widths["y"]] and w [n, widths["w"]] to pixels [n, 3, size, size], about
        [0, 1] but not clamped; None where the network has none. Every call draws new weights.
        """
        return None
