"""How well a codec gives images back, what its y and its w each carry, and what a linear codec would do.

Errors are squared errors summed over an image whose pixels lie in [0, 1], of outputs clamped to [0, 1]: the
scale of the hybrid paper's "MSE", as far as its released code tells. The codec is in evaluation mode.

All of it is collective: a rank decodes its slice of the images, and every rank gets the same figures.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipelines.common.errors import UserError
from data_pipelines.dali import in_order
from data_pipelines.draws import permutation
from data_pipelines.image_options import ImageOptions
from data_pipelines.reader import Reader
from trainer.distributed import collectives
from trainer.evaluation.features import subset
from trainer.objectives.autoencoder import Codec
from trainer.recipe.evaluation import Evaluate

PAIRS = 1000  # of test images, whose y and w are swapped
TILE = 32  # largest side of what the linear codec codes as one piece, pixels
TILES = 20_000  # that the linear codec is fitted on
ROWS = 1024  # of them at a time: products in float32, their sums in float64
PIXELS = 2**21  # at most so many in a batch: a decoder keeps many numbers a pixel
LEVELS = 256  # of a pixel, for bits per dimension
SMALLEST = torch.finfo(torch.float32).eps ** 2  # what float32 pixels cannot tell from no error


@dataclass(frozen=True)
class Sample:
    """Samples `ids` of a split, as `images` decodes them, `batch` at a time."""

    reader: Reader
    ids: np.ndarray
    images: ImageOptions
    batch: int

    def mine(self) -> "Sample":
        """This rank's contiguous slice."""
        return replace(self, ids=np.array_split(self.ids, collectives.world_size())[collectives.rank()])

    def views(self) -> Iterator[Tensor]:
        """Batches of normalised images [n, 3, H, W]."""
        return (view for view, _ in in_order(self.reader, self.images, self.ids, self.batch))


@torch.no_grad()
def measure(
    codec: Codec,
    train: Reader,
    test: Reader,
    images: ImageOptions,
    options: Evaluate,
    seed: int,
    say: Callable[[str], None],
) -> tuple[dict[str, float], "LinearCodec | None"]:
    """The figures of results.json, and the linear codec where `options.controls` asks for it.

    All of the test split is reconstructed; the linear codec is fitted on training images.

    Raises:
        SharedError: on every rank, where a reconstruction is not a number.
    """
    batch = max(1, min(options.batch, PIXELS // images.size**2))
    tested = Sample(test, np.arange(test.images), images, batch)
    elements = 3 * images.size**2
    errors = reconstruction_errors(lambda views: codec.decode(*codec.encode(views)), codec, tested)
    found = summarised(errors, elements)
    if test.images > 1:
        chosen = permutation(test.images, seed, "swapped pairs")[:PAIRS]
        found["swap_ratio"] = swap_ratio(codec, replace(tested, ids=chosen))
    say(f"  reconstruction: {_listed(found)}")
    results = {f"reconstruction/{name}": value for name, value in found.items()}
    if not options.controls:
        return results, None
    side = tile_side(images.size)
    ids = subset(train, max(1, TILES // (images.size // side) ** 2), seed)
    linear = LinearCodec.fit(codec, Sample(train, ids, images, batch), side)
    control = summarised(reconstruction_errors(lambda v: linear(codec.pixels(v)), codec, tested), elements)
    control = {name: control[name] for name in ("sse", "mse", "psnr")}
    cut = f" a tile of {side} x {side} pixels" if side < images.size else ""
    say(f"  linear codec, {linear.basis.shape[1]:,} components{cut}: {_listed(control)}")
    results |= {f"control/linear_codec/reconstruction/{name}": value for name, value in control.items()}
    return results, linear


def _listed(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


# ---- errors --------------------------------------------------------------------------------------


def squared_errors(outputs: Tensor, pixels: Tensor) -> Tensor:
    """Squared error of each image [n], float64 on the CPU; outputs, pixels [n, 3, H, W].

    Raises:
        UserError: an output is not a number.
    """
    errors = (outputs.clamp(0, 1).double() - pixels.double()).square().flatten(1).sum(1).cpu()
    if not errors.isfinite().all():
        raise UserError("a reconstruction is not a number: the decoder diverged; lower optimizer.lr")
    return errors


@torch.no_grad()
def reconstruction_errors(
    reconstruct: Callable[[Tensor], Tensor], codec: Codec, sample: Sample
) -> np.ndarray:
    """Squared error of each image, float64 [N], in the order of `sample`; collective."""

    def own() -> np.ndarray:
        parts = [squared_errors(reconstruct(view), codec.pixels(view)) for view in sample.mine().views()]
        return torch.cat([torch.empty(0, dtype=torch.float64), *parts]).numpy()

    return np.concatenate(collectives.run_on_all(own))


@torch.no_grad()
def swap_ratio(codec: Codec, sample: Sample) -> float:
    """Error with another image's y over error with another image's w, each against the image; collective.

    sum SSE(decode(y1, w0), x0) / sum SSE(decode(y0, w1), x0), x1 being the next image of `sample` (the first
    for the last). Near 0: w holds the appearance; 1: both as much; above: y holds it.
    """
    pairs = np.stack([sample.ids, np.roll(sample.ids, -1)])

    def own() -> np.ndarray:
        zeros, ones = (replace(sample, ids=ids).mine().views() for ids in pairs)
        parts = [np.empty((2, 0))]
        for zero, one in zip(zeros, ones, strict=True):
            (y0, w0), (y1, w1), pixels = codec.encode(zero), codec.encode(one), codec.pixels(zero)
            swapped = codec.decode(y1, w0), codec.decode(y0, w1)
            parts.append(np.stack([squared_errors(outputs, pixels).numpy() for outputs in swapped]))
        return np.concatenate(parts, axis=1)

    other_y, other_w = np.concatenate(collectives.run_on_all(own), axis=1)
    return math.fsum(other_y) / max(math.fsum(other_w), SMALLEST)


def summarised(errors: np.ndarray, elements: int) -> dict[str, float]:
    """Squared errors [N] of images of so many `elements` (3·H·W) as the figures of results.json.

    sse: the mean error an image; mse: an element; psnr: that of the mean mse, in dB for a peak of 1;
    log_q: E[log q(x|z)] in nats an image, q the Gaussian around the reconstruction whose one sigma for all
    elements is best for these images (sigma² = mse), a density on pixels in [0, 1]; bits_per_dimension: -log2
    of the same density an element, on pixels of 256 levels (+ 8 bits). Neither counts what z itself costs.
    An mse below float32's resolution counts as that, so that all are finite.
    """
    sse = math.fsum(errors) / len(errors)
    mse = max(sse / elements, SMALLEST)
    log_q = -0.5 * elements * math.log(2 * math.pi * math.e * mse)
    return {
        "sse": sse,
        "mse": sse / elements,
        "psnr": -10 * math.log10(mse),
        "log_q": log_q,
        "bits_per_dimension": -log_q / elements / math.log(2) + math.log2(LEVELS),
    }


# ---- the linear codec ----------------------------------------------------------------------------


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
        """Fitted on `sample`, with as many numbers an image as the codec's y and w have; collective."""
        width = 3 * side**2
        first = torch.zeros(width, dtype=torch.float64, device=sample.images.device)
        second = torch.zeros(width, width, dtype=torch.float64, device=sample.images.device)
        for view in sample.mine().views():
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
        kind = {"dtype": sample.images.dtype}
        return cls((mean + 0.5).to(**kind), vectors[:, width - components :].to(**kind), side)

    def __call__(self, pixels: Tensor) -> Tensor:
        """What is left of pixels [n, 3, H, W] after encoding and decoding, not clamped."""
        codes = (tiles(pixels, self.side) - self.mean) @ self.basis
        found = (codes @ self.basis.T + self.mean).unflatten(0, (len(pixels), -1)).transpose(1, 2)
        return F.fold(found, pixels.shape[2:], self.side, stride=self.side)


def tiles(pixels: Tensor, side: int) -> Tensor:
    """Images [n, 3, H, W] as tiles [n · tiles, 3·side²], those of an image after each other."""
    return F.unfold(pixels, side, stride=side).transpose(1, 2).flatten(0, 1)


# ---- between two images --------------------------------------------------------------------------


@torch.no_grad()
def interpolated(codec: Codec, zero: Tensor, one: Tensor, steps: int) -> dict[str, Tensor]:
    """From images `zero` to images `one`, both [n, 3, H, W]: pixels in [0, 1], [n, steps, 3, H, W].

    All of z = (1 - t)·z0 + t·z1, t from 0 to 1; y only, with the w of `zero`; w only, with the y of `zero`.
    The hybrid paper's three interpolations; its first runs the other way, from image 1 to image 0.
    """
    (y0, w0), (y1, w1) = codec.encode(zero), codec.encode(one)
    moved = {"all of z": (1, 1), "y only": (1, 0), "w only": (0, 1)}
    return {
        name: torch.stack(
            [
                codec.decode(torch.lerp(y0, y1, t * y), torch.lerp(w0, w1, t * w)).clamp(0, 1)
                for t in torch.linspace(0, 1, steps).tolist()
            ],
            dim=1,
        )
        for name, (y, w) in moved.items()
    }
