"""Sets of images that are compared: images of a data set, what a codec makes of them, damaged ones, samples.

Image i of a source is a function of i, so ranks may share its images in any way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from data_pipelines.dali import in_order
from data_pipelines.draws import stream
from data_pipelines.image_options import ImageOptions
from data_pipelines.reader import Reader
from trainer.evaluation.features import subset
from trainer.objectives.codec import Codec
from trainer.objectives.drawing import WHITE, as_uint8

Latents = tuple[Tensor, Tensor]  # y [n, d] and w [n, ...]


class ImageSource(Protocol):
    """Images by their numbers, 0 to `count` - 1."""

    @property
    def name(self) -> str:
        """The row of the table that it is."""

    @property
    def count(self) -> int:
        """How many images there are."""

    def images(self, start: int, n: int) -> Tensor:
        """Images start … start + n - 1, uint8 [n, 3, H, W], on any device."""


@dataclass(frozen=True)
class InMemory:
    """Images in a tensor, uint8 [count, 3, H, W]: samples, or a mapped file of them."""

    name: str
    pixels: Tensor

    @property
    def count(self) -> int:
        return len(self.pixels)

    def images(self, start: int, n: int) -> Tensor:
        return self.pixels[start : start + n]


@dataclass(frozen=True)
class Split:
    """Images `ids` of a split, as `options` decodes them, `batch` at a time."""

    name: str
    reader: Reader
    ids: np.ndarray
    options: ImageOptions
    batch: int

    @classmethod
    def sampled(
        cls, name: str, reader: Reader, count: int, seed: int, options: ImageOptions, batch: int
    ) -> "Split":
        """A fixed random choice of `count` images, or all there are, in the order of their ids."""
        return cls(name, reader, subset(reader, count, seed), options, batch)

    @property
    def count(self) -> int:
        return len(self.ids)

    def views(self, start: int, n: int) -> Iterator[Tensor]:
        """Batches of normalised images [.., 3, H, W]."""
        ids = self.ids[start : start + n]
        return (view for view, _ in in_order(self.reader, self.options, ids, min(self.batch, len(ids))))

    def pixels(self, view: Tensor) -> Tensor:
        """Normalised images as pixels in [0, 1]."""
        mean, std = (
            torch.tensor(values, dtype=view.dtype, device=view.device)[:, None, None]
            for values in (self.options.normalize.mean, self.options.normalize.std)
        )
        return view * std + mean

    def images(self, start: int, n: int) -> Tensor:
        return torch.cat([as_uint8(self.pixels(view)) for view in self.views(start, n)])


@dataclass(frozen=True)
class Decoded:
    """Latents decoded: drawn ones, or Gaussians fitted to z.

    Attributes:
        latents: (start, n) -> y and w of images start … start + n - 1, on the decoder's device.
        batch: images that are decoded at a time.
    """

    name: str
    count: int
    codec: Codec
    latents: Callable[[int, int], Latents]
    batch: int

    @torch.no_grad()
    def images(self, start: int, n: int) -> Tensor:
        parts = []
        for first in range(start, start + n, self.batch):
            latents = self.latents(first, min(self.batch, start + n - first))
            parts.append(as_uint8(self.codec.decode(*latents)))
        return torch.cat(parts)


@dataclass(frozen=True)
class Reconstructions:
    """What a codec makes of the images of a split: decode(z + scale · spread · noise).

    Attributes:
        scale: of standard normal noise on y and w; 0: none. Image i has the same noise at every scale.
        spread: what a scale of 1 means for y and for w, broadcast over them: standard deviations per channel,
            say; 0 leaves one of the two as it is.
        seed: of the noise.
    """

    name: str
    codec: Codec
    split: Split
    scale: float = 0.0
    spread: tuple[Tensor | float, Tensor | float] = (1.0, 1.0)
    seed: int = 0

    @property
    def count(self) -> int:
        return self.split.count

    @torch.no_grad()
    def pairs(self, start: int, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of what was decoded, about [0, 1], and of the pixels of the images themselves."""
        for view in self.split.views(start, n):
            latents = self.codec.encode(view)
            if self.scale:
                latents = self._noisy(latents, start)
            start += len(view)
            yield self.codec.decode(*latents), self.codec.pixels(view)

    def images(self, start: int, n: int) -> Tensor:
        return torch.cat([as_uint8(decoded) for decoded, _ in self.pairs(start, n)])

    def _noisy(self, latents: Latents, start: int) -> Latents:
        y, w = (
            part + self.scale * spread * self._noise(part, number, start)
            for number, (part, spread) in enumerate(zip(latents, self.spread, strict=True))
        )
        return y, w

    def _noise(self, part: Tensor, number: int, start: int) -> Tensor:
        """Standard normal numbers like `part`, [n, ...], drawn on the CPU: equal on every device."""
        drawn = []
        for image in range(start, start + len(part)):
            bits = int(stream(self.seed, "noise on latents", image, number).random_raw())
            generator = torch.Generator().manual_seed(bits >> 1)
            drawn.append(torch.randn(part.shape[1:], generator=generator))
        return torch.stack(drawn).to(part.device, part.dtype)


@dataclass(frozen=True)
class Blurred:
    """Images of another source, each pixel the mean of `width` x `width` around it; borders are repeated."""

    name: str
    source: ImageSource
    width: int

    @property
    def count(self) -> int:
        return self.source.count

    def images(self, start: int, n: int) -> Tensor:
        before, after = (self.width - 1) // 2, self.width // 2
        pixels = self.source.images(start, n).float() / WHITE
        return as_uint8(avg_pool2d(pad(pixels, (before, after) * 2, "replicate"), self.width, 1))


def ladder(
    rows: Sequence[str],
    codec: Codec | None,
    split: Split,
    spread: tuple[Tensor | float, Tensor | float] = (1.0, 1.0),
    seed: int = 0,
) -> list[ImageSource]:
    """The sources of those rows that are made of test images: what is known to be worse, and by how much.

    `test`, `reconstruction`, `noise_S` (the scale S on latents), `blur_K`; other names are left out, and
    without a codec those that need one.
    """
    clean = Reconstructions("reconstruction", codec, split, 0.0, spread, seed) if codec else None
    sources: list[ImageSource] = []
    for row in rows:
        kind, _, number = row.partition("_")
        if row == "test":
            sources.append(replace(split, name=row))
        elif row == "reconstruction" and clean:
            sources.append(clean)
        elif kind == "noise" and clean:
            sources.append(replace(clean, name=row, scale=float(number)))
        elif kind == "blur":
            sources.append(Blurred(row, split, int(number)))
    return sources
