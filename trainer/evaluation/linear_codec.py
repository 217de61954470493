"""The control of a reconstruction: the best linear codec, principal components of images or their tiles."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.distributed import collectives
from trainer.evaluation.features import Sample
from trainer.objectives.codec import Codec

TILE = 32  # largest side of what is coded as one piece, pixels
ROWS = 1024  # tiles at a time: products in float32, their sums in float64


def tile_side(size: int) -> int:
    """The largest side of at most TILE pixels that cuts an image of `size` pixels into whole tiles."""
    return max(side for side in range(1, min(size, TILE) + 1) if size % side == 0)


@dataclass(frozen=True)
class LinearCodec:
    """Principal components of the tiles of an image: the best linear codec of so many numbers.

    Images of up to TILE pixels are one tile, so that this is PCA. Larger ones are cut into tiles coded alike,
    each with its share of the components, as the covariance of whole images would not fit a machine.
    `mean` [d] and orthonormal `basis` [d, k], d = 3·side², are of pixels in [0, 1].
    """

    mean: Tensor
    basis: Tensor
    side: int

    @classmethod
    @torch.no_grad()
    def fit(cls, codec: Codec, sample: Sample, side: int) -> "LinearCodec":
        """Fits as many numbers an image as the codec's y and w have, on `sample`; collective."""
        width = 3 * side**2
        first = torch.zeros(width, dtype=torch.float64, device=sample.images.device)
        second = torch.zeros(width, width, dtype=torch.float64, device=sample.images.device)
        for view in sample.of_rank().views():
            for rows in (tiles(codec.pixels(view), side) - 0.5).split(ROWS):
                first += rows.sum(0, dtype=torch.float64)
                second += rows.T @ rows
        for moment in (first, second):
            collectives.all_reduce_sum(moment)
        across = sample.images.size // side
        count = len(sample.ids) * across**2
        mean = first / count
        _, vectors = torch.linalg.eigh((second / count).addr_(mean, mean, alpha=-1))  # smallest first
        (view,) = replace(sample, ids=sample.ids[:1]).views()
        components = min(sum(part.numel() for part in codec.encode(view)) // across**2, width)
        dtype = sample.images.dtype
        return cls((mean + 0.5).to(dtype), vectors[:, width - components :].to(dtype), side)

    def __call__(self, pixels: Tensor) -> Tensor:
        """What is left of pixels [n, 3, H, W] after encoding and decoding, not clamped."""
        codes = (tiles(pixels, self.side) - self.mean) @ self.basis
        decoded = (codes @ self.basis.T + self.mean).unflatten(0, (len(pixels), -1)).transpose(1, 2)
        return F.fold(decoded, pixels.shape[2:], self.side, stride=self.side)


def tiles(pixels: Tensor, side: int) -> Tensor:
    """Images [n, 3, H, W] as tiles [n · tiles, 3·side²], those of an image after each other."""
    return F.unfold(pixels, side, stride=side).transpose(1, 2).flatten(0, 1)
