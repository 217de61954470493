"""A deterministic autoencoder of NVAE's cells (reference: jiamings/d2c; latent as in the hybrid paper).

The latent z = [y, w] has two layouts. `map`: z is a map of `latent` channels, y the first half of them and w
the rest (Sinha, Song and Ermon). `pooled`: y is a vector, a linear map of features' means over the image,
beside a map w of `latent` / 2 channels; it has as many numbers as w, or as many as one says.
"""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from trainer.networks.batch_norm import normalization
from trainer.networks.encoder import Encoder, Features
from trainer.networks.layers import Norm
from trainer.networks.nvae_cells import InvertedCell, ResidualCell

PLACES = 4  # a side, that a pooled y is the mean of


class NvaeEncoder(Encoder):
    """Images [n, 3, size, size] -> local map, z, w and y.

    Those convolutions are weight-normalised that residual cells have in their bodies. With one halving ten
    others, here and in the decoder, are plain and have a bias: the stem, four in the halving's shortcut, the
    one in the doubling's shortcut, the 1x1 before the latent, those to and from it, the last.
    Batch-norm's momentum is torch's 0.1, where d2c has 0.05: here running statistics move once a step, by the
    mean over all groups of the batch.

    Args:
        patch: pixels a side that the stem takes together; 1 as published, 2 is several times as cheap.
        width: channels behind the stem; each halving doubles them.
        halvings: how often the side is halved; the latent's side is size / patch / 2^halvings.
        cells: residual cells before each halving.
        tower: residual cells at the latent's side.
        latent: channels of the latent, even.
        layout: "map" or "pooled".
        decoder_tower, expansion: cells at the latent's side of `decoder()`, and how much they widen; cells
            that double the side and those behind them widen half as much.
        y: width of a pooled y; None: that of w. A map's y has half of the channels.

    Raises:
        ValueError: the image cannot be halved that often, the latent has no half, or the width is too small
            to be halved.
    """

    def __init__(
        self,
        size: int,
        patch: int,
        width: int,
        halvings: int,
        cells: int,
        tower: int,
        latent: int,
        layout: str,
        decoder_tower: int,
        expansion: int,
        group: int,
        norm: str = "batch",
        y: int | None = None,
    ):
        super().__init__()
        if size % (patch * 2**halvings):
            raise ValueError(
                f"size={size} cannot be cut into patches of {patch} and halved {halvings} times "
                f"(patch, halvings); a multiple of {patch * 2**halvings} is needed"
            )
        if latent % 2:
            raise ValueError(f"latent={latent}: an even number of channels is needed, half are y's")
        self.widths_of_scales = [width * 2**scale for scale in range(halvings + 1)]
        self.cells, self.decoder_tower, self.expansion = cells, decoder_tower, expansion
        self.patch, self.layout, self.latent = patch, layout, latent
        self.norm = partial(normalization, norm, group=group)
        self.local_channels, self.local_side = self.widths_of_scales[-1], size // patch // 2**halvings
        half = latent // 2
        w = half * self.local_side**2
        vector = w if y is None or layout == "map" else y
        self.widths = {"z": vector + w, "w": w, "y": vector}
        places = (self.local_side, self.local_side)
        self.maps = {"w": (half, *places)}
        if layout == "map":
            self.maps |= {"z": (latent, *places), "y": (half, *places)}

        layers: list[nn.Module] = [nn.PixelUnshuffle(patch), nn.Conv2d(3 * patch**2, width, 3, 1, 1)]
        for before, after in pairwise(self.widths_of_scales):
            layers += [ResidualCell(before, before, self.norm) for _ in range(cells)]
            layers.append(ResidualCell(before, after, self.norm, down=True))
        top = self.local_channels
        layers += [ResidualCell(top, top, self.norm) for _ in range(tower)]
        self.layers = nn.Sequential(*layers, nn.ELU(), nn.Conv2d(top, top, 1), nn.ELU())
        self.to_map = nn.Conv2d(top, latent if layout == "map" else half, 3, 1, 1)
        if layout == "pooled":
            self.to_vector = self._to_vector(vector)

    def _to_vector(self, width: int) -> nn.Sequential:
        """Convolutions that halve the local map down to a few places, their mean, and `width` numbers of it.

        Plain ones: a residual cell hardly begins to learn in a few thousand steps. And few channels: the mean
        of many separates classes before anything is learned, and no longer when it is.
        """
        layers: list[nn.Module] = []
        channels, side = self.local_channels, self.local_side
        while side > PLACES and side % 2 == 0:
            layers += [
                nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False),
                self.norm(2 * channels),
                nn.SiLU(),
            ]
            channels, side = 2 * channels, side // 2
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, width))

    def forward(self, images: Tensor) -> Features:
        """Returns local [n, C, M, M], and z, w and y, each [n, width], maps flattened channel by channel."""
        local = self.layers(images)
        latent = self.to_map(local)
        if self.layout == "map":
            z = latent.flatten(1)
            y, w = z.chunk(2, dim=1)
        else:
            y, w = self.to_vector(local), latent.flatten(1)
            z = torch.cat([y, w], dim=1)
        return {"local": local, "z": z, "w": w, "y": y}

    def tail(self) -> tuple[nn.Module, int]:
        """A fresh cell behind the local map [n, C, M, M], pooled to [n, width], and that width.

        Raises:
            ValueError: the local map cannot be halved, or has but one channel.
        """
        if self.local_side % 2:
            raise ValueError(
                f"halvings: the local map is {self.local_side} x {self.local_side}; to start there "
                "again an even side is needed: fewer halvings or another size of image"
            )
        width = 2 * self.local_channels
        cell = ResidualCell(self.local_channels, width, self.norm, down=True)
        return nn.Sequential(cell, nn.ELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), width

    def decoder(self) -> "NvaeDecoder":
        return NvaeDecoder(
            self.widths["y"] if self.layout == "pooled" else None,
            self.latent if self.layout == "map" else self.latent // 2,
            self.local_side,
            self.widths_of_scales[::-1],
            tower=self.decoder_tower,
            cells=self.cells,
            expansion=self.expansion,
            patch=self.patch,
            norm=self.norm,
        )


class NvaeDecoder(nn.Module):
    """y [n, width] and w [n, width] -> pixels [n, 3, size, size], about [0, 1] but not clamped.

    Args:
        y: width of a vector y, which is added at every place; None: y and w are channels of one map.
        channels: of the map that is decoded: w's, or all of z's.
        side: of that map.
        widths: channels at its side, and behind each doubling of it.
        tower, expansion: cells at the map's side, and how much they widen; the others widen half as much.
        residual: whether those at the map's side are the encoder's, two 3x3 convolutions, which do not widen.
        cells: behind each doubling.
        patch: side of the square of pixels that each place is in the end.
        norm: of the cells.
    """

    def __init__(
        self,
        y: int | None,
        channels: int,
        side: int,
        widths: list[int],
        *,
        tower: int,
        cells: int,
        expansion: int,
        patch: int,
        norm: Norm,
        residual: bool = False,
    ):
        super().__init__()
        self.side, top = side, widths[0]
        self.from_map = nn.Conv2d(channels, top, 3, 1, 1)
        self.from_vector = None if y is None else nn.Linear(y, top)
        layers: list[nn.Module] = [
            ResidualCell(top, top, norm) if residual else InvertedCell(top, top, expansion, norm)
            for _ in range(tower)
        ]
        less = max(1, expansion // 2)
        for before, after in pairwise(widths):
            layers.append(InvertedCell(before, after, less, norm, up=True))
            layers += [InvertedCell(after, after, less, norm) for _ in range(cells)]
        self.layers = nn.Sequential(*layers, nn.ELU(), nn.Conv2d(widths[-1], 3 * patch**2, 3, 1, 1))
        self.unpatch = nn.PixelShuffle(patch)

    def forward(self, y: Tensor, w: Tensor) -> Tensor:
        if self.from_vector is None:
            x = self.from_map(torch.cat([y, w], dim=1).unflatten(1, (-1, self.side, self.side)))
        else:
            x = self.from_map(w.unflatten(1, (-1, self.side, self.side)))
            x = x + self.from_vector(y)[:, :, None, None]
        return (1 + self.unpatch(self.layers(x))) / 2
