"""How close images that were generated come to real ones: one row a source, against training images.

# `options` are a recipe's `Generation`; every rank makes these calls
extractor = shared_extractor(options, device)
train = Split.sampled("train", reader, options.samples, seed, images, options.batch)
comparison = Comparison.against(Reference.of_split(train, cache), extractor, options, seed, say)
sources = [*ladder(options.rows, codec, test, spread, seed), InMemory("samples", pixels)]
figures = measured_rows(sources, comparison)  # {"generation/samples/fid": 3.2, …}
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipelines.draws import permutation
from trainer.distributed import collectives
from trainer.evaluation.distances import Moments, frechet, kid, nearest, precision_recall, sliced_w2
from trainer.evaluation.extractors import Extractor
from trainer.evaluation.feature_statistics import FeatureStatistics, Reference, feature_statistics, pieces
from trainer.evaluation.image_sources import ImageSource, Reconstructions
from trainer.evaluation.reconstruction import squared_errors
from trainer.evaluation.torchscript import build_extractor
from trainer.recipe.generation import Generation, Measure

OF_FID = 50_000  # images of each side, by convention


def shared_extractor(options: Generation, device: torch.device) -> Extractor:
    """The extractor that the options name, on every rank; collective.

    Raises:
        SharedError: on every rank, what is missing on one: a package, a file, a digest.
    """
    assert options.extractor is not None  # else nothing is compared
    name, built = options.extractor, []

    def build() -> None:
        built.append(build_extractor(name, options.sha256, options.size, device))

    collectives.run_on_all(build)
    return built[0]


@dataclass(frozen=True)
class Row:
    """What was measured of a source.

    Attributes:
        figures: by measure, `fid` or `frechet_EXTRACTOR`, …, and `images`; equal on every rank.
        distances: of each image to its nearest training image, [images]; None where it was not wanted, and on
            other ranks than 0.
        neighbours: the numbers of those training images in the reference, int64 [images]; likewise.
    """

    figures: dict[str, float]
    distances: Tensor | None = None
    neighbours: Tensor | None = None


@dataclass(frozen=True)
class Comparison:
    """Distances between a source of images and a reference.

    Attributes:
        extractor: of the features.
        reference: of the training images; on rank 0, None elsewhere.
        options: which measures, of how many images.
        seed: of KID's subsets and of random directions.
        say: receives lines for a person; prints on rank 0 alone.
    """

    extractor: Extractor
    reference: FeatureStatistics | None
    options: Generation
    seed: int
    say: Callable[[str], None]

    @classmethod
    def against(
        cls,
        reference: Reference,
        extractor: Extractor,
        options: Generation,
        seed: int,
        say: Callable[[str], None],
    ) -> "Comparison":
        """Extracts the reference's features, or reads what is kept of them; collective.

        Raises:
            SharedError: on every rank, what went wrong on one.
        """
        count, keep = options.samples, options.keeps_features
        statistics = reference.statistics(extractor, count, options.batch, keep, say)
        comparison = cls(extractor, statistics, options, seed, say)
        if statistics is not None:
            comparison.warn_of_few("the training images", statistics)
        return comparison

    def row(self, source: ImageSource) -> Row:
        """All that is wanted of a source; collective.

        Of a measure that has too few images, no figure.

        Raises:
            SharedError: on every rank, what went wrong on one.
        """
        count = min(self.options.samples, source.count)
        batch, keep = self.options.batch, self.options.keeps_features
        statistics = feature_statistics(source, self.extractor, count, batch, keep)
        near: list[tuple[Tensor, Tensor]] = []

        def measure() -> dict[str, float]:
            assert statistics is not None  # on rank 0
            self.warn_of_few(source.name, statistics)
            figures: dict[str, float] = {"images": statistics.images}
            for kind in self.options.measures:
                figures |= self._measured(kind, source.name, statistics, near)
            return figures

        figures = collectives.run_on_main(measure)
        return Row(figures, *near[0]) if near else Row(figures)

    def _measured(
        self, kind: Measure, name: str, statistics: FeatureStatistics, near: list[tuple[Tensor, Tensor]]
    ) -> dict[str, float]:
        """The figures of one measure; `near` receives distances and numbers of the nearest images."""
        assert self.reference is not None  # on rank 0
        fewest = {"frechet": 2, "kid": 2, "precision_recall": self.options.neighbours + 1}.get(kind, 1)
        if min(statistics.images, self.reference.images) < fewest:
            self.say(f"warning: {kind} of {name} was left out: it needs {fewest} images of both sides")
            return {}
        figure = self.extractor.figure
        if kind == "frechet":
            return {figure(kind): frechet(self.reference.moments, statistics.moments)}
        real, rows = self._on_device(self.reference.rows), self._on_device(statistics.rows)
        if kind == "kid":
            return {figure(kind): kid(real, rows, self.seed)[0]}
        if kind == "sliced_w2":
            return {figure(kind): sliced_w2(real, rows, self.seed)}
        if kind == "precision_recall":
            shares = precision_recall(real, rows, self.options.neighbours)
            return dict(zip((figure("precision"), figure("recall")), shares, strict=True))
        distances, numbers = nearest(rows, real)
        near.append((distances.cpu(), numbers.cpu()))
        return {figure(kind): distances.median().item()}

    def _on_device(self, rows: Tensor | None) -> Tensor:
        """Features [n, d], which a measure that needs them has kept, where the extractor is."""
        assert rows is not None
        return rows.to(self.extractor.device)

    def warn_of_few(self, what: str, statistics: FeatureStatistics) -> None:
        """Says how wrong a Fréchet distance is of fewer images than features, or a FID of other numbers."""
        name, images = self.extractor.figure("frechet"), statistics.images
        if "frechet" not in self.options.measures:
            return
        if self.extractor.is_inception and images != OF_FID:
            self.say(f"warning: {name} of {images:,} images ({what}): published ones are of {OF_FID:,}")
        if statistics.rows is not None and 4 <= images < (features := statistics.rows.shape[1]):
            self.say(
                f"warning: {name} of fewer images ({what}: {images:,}) than features ({features:,}) is too "
                f"large: two random halves of these images are {bias(statistics.rows, self.seed):.4g} apart"
            )


def bias(rows: Tensor, seed: int) -> float:
    """The Fréchet distance of two random halves of rows [n, d], n at least 4; of infinitely many it is 0.

    What n images of one distribution are apart is about half of it where n is far above d.
    """
    numbers = torch.from_numpy(permutation(len(rows), seed, "halves"))
    one, two = (Moments.of(rows[half]) for half in numbers.chunk(2))
    return frechet(one, two)


def measured_rows(sources: Sequence[ImageSource], comparison: Comparison) -> dict[str, Row]:
    """What was measured of each source, by name, and a line on the screen for each; collective.

    Of reconstructions `sse` too, the squared error of an image.
    """
    options, rows = comparison.options, {}
    for source in sources:
        row = comparison.row(source)
        if isinstance(source, Reconstructions):
            row.figures["sse"] = squared_error(source, min(options.samples, source.count), options.batch)
        listed = "  ".join(f"{name} {value:,.4g}" for name, value in row.figures.items())
        comparison.say(f"  {source.name}: {listed}")
        rows[source.name] = row
    return rows


def named_figures(rows: Mapping[str, Row]) -> dict[str, float]:
    """The figures of all rows, `generation/ROW/MEASURE`."""
    return {
        f"generation/{row}/{name}": value
        for row, measured in rows.items()
        for name, value in measured.figures.items()
    }


def squared_error(source: Reconstructions, count: int, batch: int) -> float:
    """The mean squared error of an image, summed over its pixels in [0, 1]; collective, equal on every rank.

    Raises:
        SharedError: on every rank, where a reconstruction is not a number.
    """
    cut, rank, world = pieces(count, batch), collectives.rank(), collectives.world_size()

    def errors_of_rank() -> list[float]:
        return [
            error
            for piece in cut[rank::world]
            for decoded, pixels in source.pairs(*piece)
            for error in squared_errors(decoded, pixels).tolist()
        ]

    parts = collectives.run_on_all(errors_of_rank)
    return math.fsum(error for part in parts for error in part) / count
