"""What is measured of a diffusion run: rows of images against training images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_pipelines.dataset import Dataset
from data_pipelines.draws import permutation
from data_pipelines.image_options import ImageOptions
from data_pipelines.plan import sample
from data_pipelines.reader import Reader
from trainer.distributed import collectives
from trainer.evaluation import denoiser_features, inversion
from trainer.evaluation.feature_statistics import Reference
from trainer.evaluation.generation import Comparison, measured_rows, named_figures, shared_extractor
from trainer.evaluation.image_sources import Decoded, ImageSource, Split, ladder
from trainer.evaluation.pixel_diffusion import PixelDiffusion
from trainer.generation.gaussians import Gaussian, channel_gaussian, full_gaussian, spreads
from trainer.generation.latents import Latents
from trainer.objectives.denoiser import Diffusion
from trainer.objectives.drawing import Artist, SampleNoise
from trainer.recipe.diffusion import Diffuse
from trainer.recipe.generation import Generation
from trainer.recipe.schema import Data
from trainer.tasks import generation_pages
from trainer.tasks.latent_source import LatentSource
from trainer.training.data import image_options

CACHE = "statistics"  # of training images, beside the runs


@dataclass(frozen=True)
class Pixels:
    """What of a recipe without `from` says how its images are read."""

    seed: int
    precision: str
    batch: int
    data: Data


@dataclass(frozen=True)
class Drawn:
    """Samples of an artist as a source of images.

    Attributes:
        y: (ids) -> the y [n, d] that w is drawn for; None: y is drawn.
    """

    name: str
    count: int
    artist: Artist
    y: Callable[[np.ndarray], Tensor] | None = None

    def images(self, start: int, n: int) -> Tensor:
        ids = np.arange(start, start + n)
        parts = [self.artist.images(part, self.y and self.y(part)) for part in self.artist.batches(ids)]
        return torch.cat(parts)


# ---- rows of images against training images --------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """What is measured, of which run, with which data.

    Attributes:
        artist: draws.
        options: which rows, how many images of each.
        source: of the latents; None where samples are images.
        dataset: that the images come from.
        splits: those of training and of test images.
        images: how images are decoded for the encoder, or for the denoiser.
        latents: y and w of all training images; None where samples are images.
        folder: of the run, or of one of its evaluations: figures/.
        cache: folder for statistics of training images.
        say: receives lines for a person.
    """

    artist: Artist
    options: Generation
    source: LatentSource | None
    dataset: Dataset
    splits: tuple[str, str]
    images: ImageOptions
    latents: Latents | None
    folder: Path
    cache: Path
    say: Callable[[str], None]


def measurement(
    recipe: Diffuse,
    options: Generation,
    artist: Artist,
    source: LatentSource | None,
    dataset: Dataset,
    folder: Path,
    runs: Path,
    device: torch.device,
    say: Callable[[str], None],
) -> Measurement:
    """What is measured of a diffusion run; collective where it has latents.

    Args:
        folder: for pictures, that of the run or of one of its evaluations.
        runs: the folder of all runs, where statistics are kept if `options` name no other.
    """
    cache = Path(options.cache) if options.cache else runs / CACHE
    if source is None:
        assert recipe.data is not None  # either of the two is there
        data, latents = recipe.data, None
        images = image_options(Pixels(recipe.seed, recipe.precision, recipe.batch, data), device)
    else:
        data, latents = source.recipe.data, source.latents(device)
        images = source.images(device)
    splits = data.train, data.test
    return Measurement(artist, options, source, dataset, splits, images, latents, folder, cache, say)


def measure(what: Measurement) -> dict[str, float]:
    """The figures `generation/ROW/MEASURE`, and of a denoiser of images its own; collective.

    Equal on every rank.

    Raises:
        SharedError: on every rank, what went wrong on one: an extractor, a disk.
    """
    train, test = (Reader(what.dataset, name) for name in what.splits)
    with train, test:
        return _compared(what, train, test) | _of_pixels(what, train, test)


def _of_pixels(what: Measurement, train: Reader, test: Reader) -> dict[str, float]:
    """What a denoiser of images knows of them: the probe of its features, and inversion."""
    options, artist, results = what.options, what.artist, dict[str, float]()
    if not isinstance(artist.objective, Diffusion) or what.source is not None:
        return results
    context = PixelDiffusion(
        objective=artist.objective,
        train=train,
        test=test,
        images=what.images,
        classes=len(what.dataset.classes),
        linear=options.linear,
        seed=artist.seed,
        folder=what.folder,
        say=what.say,
        batch=options.batch,
        bf16=artist.bf16,
    )
    if options.inversion:
        results |= inversion.measure(context, options.inversion)
    if options.denoiser_features and context.supervised:
        results |= denoiser_features.measure(context, options.denoiser_features)
    return results


def _compared(what: Measurement, train: Reader, test: Reader) -> dict[str, float]:
    """The figures `generation/ROW/MEASURE`, and pages of what was compared."""
    options, seed = what.options, what.artist.seed
    if options.extractor is None:
        what.say("  nothing is compared: evaluate.extractor names no network to compare images by")
        return {}
    extractor = shared_extractor(options, what.images.device)
    reference = Reference.of_split(_split(what, "train", train), what.cache)
    comparison = Comparison.against(reference, extractor, options, seed, what.say)
    rows = measured_rows(sources(what, _split(what, "test", test)), comparison)
    if collectives.rank() == 0:
        distance = extractor.figure("frechet")
        generation_pages.draw_rows(what.folder, what.artist, rows, reference.source, distance)
    return named_figures(rows)


def _split(what: Measurement, name: str, reader: Reader) -> Split:
    """A fixed random choice of a split's images, as many as are measured, in random order."""
    chosen = sample(what.artist.seed, "measured", reader.images, what.options.samples)
    ids = chosen[permutation(len(chosen), what.artist.seed, "measured")]
    return Split(name, reader, ids, what.images, what.options.batch)


def sources(what: Measurement, test: Split) -> list[ImageSource]:
    """The images of each row that is wanted and can be made, in the order of the options."""
    artist, count, batch = what.artist, what.options.samples, what.options.batch
    made: dict[str, ImageSource] = {}
    for row in what.options.rows:
        if row == "samples":
            made[row] = Drawn(row, count, artist)
    if what.source is None or what.latents is None:
        made |= {source.name: source for source in ladder(what.options.rows, None, test)}
        return [made[row] for row in what.options.rows if row in made]
    codec, tables = what.source.codec(what.images.device), what.latents.tables
    y, w = (spreads(tables[name])[1].to(what.images.device, what.images.dtype) for name in ("y", "w"))
    made |= {source.name: source for source in ladder(what.options.rows, codec, test, (y, w), artist.seed)}
    if "samples_of_train_y" in what.options.rows and "y" in artist.shapes:
        made["samples_of_train_y"] = Drawn("samples_of_train_y", count, artist, _training_y(what))
    for row, fit in (("gaussian_full", full_gaussian), ("gaussian_channel", channel_gaussian)):
        if row in what.options.rows:
            made[row] = Decoded(row, count, codec, _of_gaussian(what, fit(tables)), batch)
    return [made[row] for row in what.options.rows if row in made]


def _training_y(what: Measurement) -> Callable[[np.ndarray], Tensor]:
    """The y of training images, of their mirror images too, in random order."""
    assert what.latents is not None
    table, options = what.latents.tables["y"], what.images
    order = permutation(len(table), what.artist.seed, "training y")
    return lambda ids: torch.from_numpy(table[order[ids % len(order)]]).to(options.device, options.dtype)


def _of_gaussian(what: Measurement, gaussian: Gaussian) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """y and w of sample i, drawn from a Gaussian."""
    assert what.source is not None
    shapes, options = what.source.shapes, what.images
    like = torch.empty(len(gaussian.mean), device=options.device, dtype=options.dtype)
    numbers = [int(np.prod(shapes[name])) for name in ("y", "w")]

    def latents(start: int, n: int) -> tuple[Tensor, Tensor]:
        noise = SampleNoise(what.artist.seed, np.arange(start, start + n), "gaussian", like)()
        y, w = gaussian.of_noise(noise).split(numbers, 1)
        return y, w

    return latents
