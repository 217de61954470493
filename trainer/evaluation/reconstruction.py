"""How well a codec reconstructs images, what its y and its w each carry, and what a linear codec would do.

Errors are squared errors summed over an image whose pixels lie in [0, 1], of outputs clamped to [0, 1]: the
scale of the hybrid paper's "MSE", as far as its released code says. The codec is in evaluation mode.

All of it is collective: a rank decodes its slice of the images, and every rank gets the same figures.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from data_pipelines.common.errors import UserError
from data_pipelines.draws import permutation
from data_pipelines.image_options import ImageOptions
from data_pipelines.reader import Reader
from trainer.distributed import collectives
from trainer.evaluation.context import EvaluationContext, Evaluator
from trainer.evaluation.features import Sample, subset
from trainer.evaluation.figures import reconstructions
from trainer.evaluation.linear_codec import LinearCodec, tile_side
from trainer.evaluation.pictures import as_pictures
from trainer.evaluation.ssim import WINDOW, structural_similarity
from trainer.objectives.codec import Codec
from trainer.recipe.evaluation import Evaluate

PAIRS = 1000  # of test images, whose y and w are swapped
TILES = 20_000  # that the linear codec is fitted on
PIXELS = 2**21  # at most so many in a batch: a decoder keeps many numbers a pixel
LEVELS = 256  # of a pixel, for bits per dimension
SMALLEST = torch.finfo(torch.float32).eps ** 2  # below float32 resolution of a pixel error
SHOWN = 24  # test images beside their reconstructions
SHOWN_PAIRS, STEPS = 4, 9  # pairs of test images, and images from the one to the other


class Reconstruction(Evaluator):
    """Errors on all test images, the linear codec as the control, and pages of images; of a decoder."""

    name = "reconstruction"

    def wanted(self, context: EvaluationContext) -> bool:
        return context.objective.codec is not None

    def run(self, context: EvaluationContext) -> dict[str, float]:
        codec, train, test = context.objective.codec, context.train, context.test
        assert codec is not None  # since it was wanted
        images, seed = context.images, context.recipe.seed
        figures, linear = measure(codec, train, test, images, context.options, seed, context.say)
        if context.is_main:
            draw(context, codec, linear)
        return figures


@torch.no_grad()
def measure(
    codec: Codec,
    train: Reader,
    test: Reader,
    images: ImageOptions,
    options: Evaluate,
    seed: int,
    say: Callable[[str], None],
) -> tuple[dict[str, float], LinearCodec | None]:
    """The figures of results.json, and the linear codec where `options.controls` asks for it.

    All of the test split is reconstructed; the linear codec is fitted on training images. Beside `summarised`
    the mean SSIM, of images that are large enough for it, and `latent_size`, the numbers of z = [y, w].

    Raises:
        SharedError: on every rank, where a reconstruction is not a number.
    """
    batch = max(1, min(options.batch, PIXELS // images.size**2))
    tested = Sample(test, np.arange(test.images), images, batch)
    elements = 3 * images.size**2
    measures = [squared_errors, structural_similarity][: 1 + (images.size >= WINDOW)]
    scores = reconstruction_scores(lambda v: codec.decode(*codec.encode(v)), codec, tested, measures)
    figures = summarised(scores[0], elements) | _similarity(scores)
    if test.images > 1:
        chosen = permutation(test.images, seed, "swapped pairs")[:PAIRS]
        figures["swap_ratio"] = swap_ratio(codec, replace(tested, ids=chosen))
    first = next(replace(tested, ids=tested.ids[:1]).views())
    figures["latent_size"] = float(sum(part.numel() for part in codec.encode(first)))
    say(f"  reconstruction: {_listed(figures)}")
    results = {f"reconstruction/{name}": value for name, value in figures.items()}
    if not options.controls:
        return results, None
    side = tile_side(images.size)
    ids = subset(train, max(1, TILES // (images.size // side) ** 2), seed)
    linear = LinearCodec.fit(codec, Sample(train, ids, images, batch), side)
    scores = reconstruction_scores(lambda v: linear(codec.pixels(v)), codec, tested, measures)
    control = summarised(scores[0], elements)
    control = {name: control[name] for name in ("sse", "mse", "psnr")} | _similarity(scores)
    cut = f" a tile of {side} x {side} pixels" if side < images.size else ""
    say(f"  linear codec, {linear.basis.shape[1]:,} components{cut}: {_listed(control)}")
    results |= {f"control/linear_codec/reconstruction/{name}": value for name, value in control.items()}
    return results, linear


def _similarity(scores: np.ndarray) -> dict[str, float]:
    """The mean of the second row of `reconstruction_scores`, where it has one."""
    return {"ssim": math.fsum(scores[1]) / scores.shape[1]} if len(scores) > 1 else {}


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
def reconstruction_scores(
    reconstruct: Callable[[Tensor], Tensor],
    codec: Codec,
    sample: Sample,
    measures: Sequence[Callable[[Tensor, Tensor], Tensor]] = (squared_errors,),
) -> np.ndarray:
    """Each measure of each image, float64 [measures, N], in the order of `sample`; collective.

    A measure takes outputs and pixels, both [n, 3, H, W], and returns [n], float64 on the CPU.
    """

    def scores_of_rank() -> np.ndarray:
        parts = [np.empty((len(measures), 0))]
        for view in sample.of_rank().views():
            outputs, pixels = reconstruct(view), codec.pixels(view)
            parts.append(np.stack([measure(outputs, pixels).numpy() for measure in measures]))
        return np.concatenate(parts, axis=1)

    return np.concatenate(collectives.run_on_all(scores_of_rank), axis=1)


@torch.no_grad()
def swap_ratio(codec: Codec, sample: Sample) -> float:
    """Error with another image's y over error with another image's w, each against the image; collective.

    sum SSE(decode(y1, w0), x0) / sum SSE(decode(y0, w1), x0), x1 being the next image of `sample` (the first
    for the last). Near 0: w holds the appearance; 1: both as much; above: y holds it.
    """
    pairs = np.stack([sample.ids, np.roll(sample.ids, -1)])

    def errors_of_rank() -> np.ndarray:
        zeros, ones = (replace(sample, ids=ids).of_rank().views() for ids in pairs)
        parts = [np.empty((2, 0))]
        for zero, one in zip(zeros, ones, strict=True):
            (y0, w0), (y1, w1), pixels = codec.encode(zero), codec.encode(one), codec.pixels(zero)
            swapped = codec.decode(y1, w0), codec.decode(y0, w1)
            parts.append(np.stack([squared_errors(outputs, pixels).numpy() for outputs in swapped]))
        return np.concatenate(parts, axis=1)

    other_y, other_w = np.concatenate(collectives.run_on_all(errors_of_rank), axis=1)
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


# ---- pictures --------------------------------------------------------------------------------------


def draw(context: EvaluationContext, codec: Codec, linear: LinearCodec | None) -> None:
    """Test images beside their reconstructions, and decoded images between two of them; on rank 0."""
    ids = permutation(context.test.images, context.recipe.seed, "shown")[:SHOWN]
    views = next(Sample(context.test, ids, context.images, len(ids)).views())
    originals = codec.pixels(views)
    with context.drawing("reconstructions.png") as path, torch.no_grad():
        outputs = {"reconstruction": codec.decode(*codec.encode(views))}
        if linear is not None:
            outputs["linear codec"] = linear(originals)
        columns = {
            name: (as_pictures(x), squared_errors(x, originals).tolist()) for name, x in outputs.items()
        }
        reconstructions.reconstructions(path, as_pictures(originals), columns)
    if pairs := min(SHOWN_PAIRS, len(ids) // 2):
        zero, one = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
        with context.drawing("interpolations.png") as path:
            between = interpolated(codec, views[zero], views[one], STEPS)
            reconstructions.interpolations(
                path,
                as_pictures(originals[zero]),
                as_pictures(originals[one]),
                {name: [as_pictures(frames) for frames in lines] for name, lines in between.items()},
            )


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
