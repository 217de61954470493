"""What is drawn and measured of a diffusion run: pages of samples, and rows of the table of images."""

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
from trainer.evaluation.feature_statistics import Reference
from trainer.evaluation.figures import samples as figures
from trainer.evaluation.generation import Comparison, measured_rows, shared_extractor
from trainer.evaluation.image_sources import Decoded, ImageSource, Split, ladder
from trainer.evaluation.pictures import drawing
from trainer.generation.gaussians import Gaussian, channel_gaussian, full_gaussian, spreads
from trainer.generation.latents import Latents
from trainer.objectives.drawing import Artist, SampleNoise
from trainer.recipe.diffusion import Diffuse
from trainer.recipe.generation import Generation
from trainer.recipe.schema import Data
from trainer.tasks.latent_source import LatentSource
from trainer.training.data import image_options

CACHE = "statistics"  # of training images, beside the runs


@dataclass(frozen=True)
class Pixels:
    """What of a recipe without `from` says how its images are read."""

    seed: int
    precision: str
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


def draw_page(artist: Artist, folder: Path, name: str, count: int) -> Path:
    """Draws the first samples on a page in `folder`/figures; on rank 0. Its path."""
    with drawing(folder, name) as path:
        ids = np.arange(count)
        shown = torch.cat([artist.images(part) for part in artist.batches(ids)])
        figures.grid(path, list(shown), describe_drawing(artist))
    return folder / "figures" / name


def describe_drawing(artist: Artist) -> str:
    """How samples are drawn, in words: "flow, 25 steps of heun, seed 0"."""
    options, process = artist.options, artist.process
    words = [f"{process}, {options.steps_of(process)} steps of {options.sampler_of(process)}"]
    words += [f"eta {options.eta:g}"] * bool(options.eta)
    words += [f"guidance {options.guidance:g}"] * (options.guidance != 1)
    return ", ".join([*words, f"seed {artist.seed}"])


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
    cache: Path
    say: Callable[[str], None]


def measurement(
    recipe: Diffuse,
    options: Generation,
    artist: Artist,
    source: LatentSource | None,
    dataset: Dataset,
    run: Path,
    device: torch.device,
    say: Callable[[str], None],
) -> Measurement:
    """What is measured of a diffusion run in the folder `run`; collective where it has latents."""
    cache = Path(options.cache) if options.cache else run.parent / CACHE
    if source is None:
        assert recipe.data is not None  # either of the two is there
        data, latents = recipe.data, None
        images = image_options(Pixels(recipe.seed, recipe.precision, data), device)
    else:
        data, latents = source.recipe.data, source.latents(device)
        images = source.images(device)
    splits = data.train, data.test
    return Measurement(artist, options, source, dataset, splits, images, latents, cache, say)


def measure(what: Measurement) -> dict[str, float]:
    """The figures `generation/ROW/MEASURE`; collective, equal on every rank.

    Raises:
        SharedError: on every rank, what went wrong on one: an extractor, a disk.
    """
    options, seed = what.options, what.artist.seed
    if options.extractor is None:
        what.say("  nothing is compared: evaluate.extractor names no network to compare images by")
        return {}
    extractor = shared_extractor(options, what.images.device)
    train, test = (Reader(what.dataset, name) for name in what.splits)
    with train, test:
        identity: dict[str, str | int] = {"data": what.dataset.fingerprint, "split": train.split}
        identity |= {"size": what.images.size, "seed": seed}
        reference = Reference(_split(what, "train", train), identity, what.cache)
        comparison = Comparison.against(reference, extractor, options, seed, what.say)
        return measured_rows(sources(what, _split(what, "test", test)), comparison)


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
