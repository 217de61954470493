"""Rows of generated images against training images: every figure against its definition, and its name."""

import numpy as np
import pytest
import scipy.linalg
import torch

from data_pipelines.common.errors import SharedError
from data_pipelines.image_options import ImageOptions
from data_pipelines.reader import Reader
from data_pipelines.views import Normalize
from tests.helpers.tiny_dataset import pictures, write_dataset
from tests.helpers.tiny_extractors import CPU, Linear, exact_codec, torchscript
from trainer.evaluation import torchscript as torchscripts
from trainer.evaluation.distances import kid, precision_recall, sliced_w2
from trainer.evaluation.feature_statistics import Reference
from trainer.evaluation.generation import (
    Comparison,
    bias,
    measured_rows,
    named_figures,
    shared_extractor,
    squared_error,
)
from trainer.evaluation.image_sources import Blurred, InMemory, Reconstructions, Split
from trainer.recipe.generation import Generation

SIDE, WIDTH, TRAIN, SAMPLES = 8, 6, 120, 70


def drawn(n: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(pictures(n, SIDE, SIDE, seed)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def train():
    return InMemory("train", drawn(TRAIN, 0))


@pytest.fixture(scope="module")
def samples():
    return InMemory("samples", drawn(SAMPLES, 1) // 2 + 60)


def compared(train, extractor, lines=None, **options) -> Comparison:
    options = Generation(**{"samples": TRAIN, "batch": 16} | options)
    say = lines.append if lines is not None else print
    return Comparison.against(Reference(train, {}), extractor, options, 5, say)


def test_figures_are_the_distances_of_the_features(train, samples):
    extractor = Linear(WIDTH, SIDE)
    figures = compared(train, extractor).row(samples).figures
    real, rows = extractor(train.pixels), extractor(samples.pixels)
    a, b = (np.cov(x.numpy(), rowvar=False) for x in (real, rows))
    apart = real.mean(0).numpy() - rows.mean(0).numpy()
    root = scipy.linalg.sqrtm(a @ b)
    precision, recall = precision_recall(real, rows, 3)
    expected = {
        "images": SAMPLES,
        "frechet_linear": (apart @ apart + np.trace(a + b) - 2 * np.trace(root)).real,
        "kid_linear": kid(real, rows, 5)[0],
        "sliced_w2_linear": sliced_w2(real, rows, 5),
        "precision_linear": precision,
        "recall_linear": recall,
        "nearest_linear": torch.cdist(rows, real).min(1).values.median().item(),
    }
    assert figures == pytest.approx(expected, rel=1e-6)


def test_neighbours_are_numbers_of_training_images(train):
    copies = InMemory("copies", train.pixels[[7, 3, 99, 0]])
    row = compared(train, Linear(WIDTH, SIDE)).row(copies)
    assert row.neighbours.tolist() == [7, 3, 99, 0]
    assert row.distances.max() < 1e-6
    assert row.figures["nearest_linear"] < 1e-6
    assert row.figures["precision_linear"] == 1


def test_rows_are_named_and_worse_images_are_further_away(train):
    lines = []
    comparison = compared(train, Linear(WIDTH, SIDE), lines)
    test = InMemory("test", drawn(SAMPLES, 2))
    sources = [test, *(Blurred(f"blur_{width}", test, width) for width in (2, 4))]
    figures = named_figures(measured_rows(sources, comparison))
    values = [figures[f"generation/{row}/frechet_linear"] for row in ("test", "blur_2", "blur_4")]
    assert values == sorted(values)
    assert figures["generation/blur_4/images"] == SAMPLES
    assert [line.split(":")[0].strip() for line in lines] == ["test", "blur_2", "blur_4"]
    assert len(figures) == 3 * 7


def test_at_most_so_many_images_of_either_side(train, samples):
    extractor = Linear(WIDTH, SIDE)
    comparison = compared(train, extractor, samples=50, measures=["frechet"])
    assert extractor.images == 50
    assert comparison.reference.rows is None  # nothing but the moments is kept
    assert comparison.row(samples).figures["images"] == 50
    assert extractor.images == 100


def test_fewer_images_than_features_is_a_warning_with_the_size_of_the_bias(train):
    lines, extractor = [], Linear(100, SIDE)
    comparison = compared(train, extractor, lines, measures=["frechet"])
    assert lines == []
    few = InMemory("few", drawn(40, 2))
    rows = extractor(few.pixels)
    comparison.row(few)
    assert lines == [
        "warning: frechet_linear of fewer images (few: 40) than features (100) is too large: "
        f"two random halves of these images are {bias(rows, 5):.4g} apart"
    ]


def test_the_bias_of_gaussians_falls_with_their_number():
    rows = torch.randn(4000, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small, large = (np.mean([bias(rows[:n], seed) for seed in range(8)]) for n in (40, 400))
    assert bias(rows, 0) < 0.05
    assert 6 < small / large < 20  # as 1/n


def test_inceptions_frechet_distance_is_the_fid_and_says_how_many_images_it_is_of(
    train, samples, tmp_path, monkeypatch
):
    path, network, digest = torchscript(tmp_path, "inception-2015-12-05")
    monkeypatch.setattr(torchscripts, "INCEPTIONS", (digest,))
    options, lines = Generation(extractor=str(path), samples=TRAIN, batch=50, measures=["frechet", "kid"]), []
    extractor = shared_extractor(options, CPU)
    comparison = Comparison.against(Reference(train, {}), extractor, options, 0, lines.append)
    figures = comparison.row(samples).figures
    assert figures.keys() == {"images", "fid", "kid_inception"}
    with torch.no_grad():
        a, b = (network(x, return_features=True).double().numpy() for x in (train.pixels, samples.pixels))
    apart, covariances = a.mean(0) - b.mean(0), [np.cov(x, rowvar=False) for x in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    expected = (apart @ apart + np.trace(covariances[0] + covariances[1]) - 2 * np.trace(root)).real
    assert figures["fid"] == pytest.approx(expected, rel=1e-6)
    assert lines == [
        "warning: fid of 120 images (the training images): published ones are of 50,000",
        "warning: fid of 70 images (samples): published ones are of 50,000",
    ]


def test_a_missing_extractor_is_one_line_for_all_ranks(tmp_path):
    with pytest.raises(SharedError, match=r"no\.pt: the extractor's file cannot be read"):
        shared_extractor(Generation(extractor=str(tmp_path / "no.pt")), CPU)


@pytest.mark.parametrize(("images", "left_out"), [(1, ["frechet", "kid", "precision_recall"]), (3, ["prec"])])
def test_what_has_too_few_images_is_left_out_alone(train, images, left_out):
    lines = []
    comparison = compared(train, Linear(WIDTH, SIDE), lines)
    figures = comparison.row(InMemory("samples", drawn(images, 3))).figures
    assert {"sliced_w2_linear", "nearest_linear"} < figures.keys()
    assert ("frechet_linear" in figures) == (images > 1)
    left = [line for line in lines if "left out" in line]
    assert len(left) == len(left_out)
    assert all(name in line for name, line in zip(left_out, left, strict=True))


def test_noise_on_latents_costs_error_and_distance(train, tmp_path):
    dataset = write_dataset(tmp_path, pictures(SAMPLES, SIDE, SIDE, 2), per_shard=30)
    with Reader(dataset, "train") as reader:
        split = Split("test", reader, np.arange(SAMPLES), ImageOptions(SIDE, Normalize(), 1, CPU), 25)
        sources = [
            Reconstructions(f"noise_{scale}", exact_codec(), split, scale) for scale in (0.0, 0.1, 0.5)
        ]
        rows = measured_rows(sources, compared(train, Linear(WIDTH, SIDE), batch=70))
        decoded, pixels = next(sources[2].pairs(0, 25))
        slow = sum(((decoded[i].clamp(0, 1) - pixels[i]).double() ** 2).sum().item() for i in range(25)) / 25
        assert squared_error(sources[2], 25, 25) == pytest.approx(slow, rel=1e-5)
    errors, distances = ([row.figures[name] for row in rows.values()] for name in ("sse", "frechet_linear"))
    assert errors[0] < 1e-9 < errors[1] < errors[2]
    assert distances[0] < distances[2]
