"""Reconstruction: every figure against its definition on images that are all in memory at once."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch.distributions import Normal

from data_pipelines.common.errors import SharedError
from data_pipelines.dali import in_order
from data_pipelines.draws import permutation
from data_pipelines.image_options import ImageOptions
from data_pipelines.reader import Reader
from data_pipelines.views import Normalize
from tests.helpers.linear_codecs import Projection
from trainer.evaluation import reconstruction
from trainer.evaluation.features import Sample
from trainer.evaluation.linear_codec import LinearCodec, tile_side
from trainer.evaluation.reconstruction import interpolated, measure, summarised
from trainer.evaluation.ssim import structural_similarity
from trainer.recipe.evaluation import Evaluate

NORMALIZE = Normalize(mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])
IMAGES = ImageOptions(8, NORMALIZE, 1, torch.device("cpu"), torch.float64)
ELEMENTS = 3 * 8 * 8


def pixels_of(reader, images=IMAGES, ids=None):
    """Pixels in [0, 1] of samples [N, 3, H, W], float64."""
    ids = np.arange(reader.images) if ids is None else ids
    views = torch.cat([view for view, _ in in_order(reader, images, ids, 500)]).double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (NORMALIZE.mean, NORMALIZE.std))
    return views * std + mean


def projected(codec, pixels):
    """By the definition: the projection on the codec's directions, clamped."""
    directions = torch.cat([codec.to_y, codec.to_w], dim=1)
    flat = (pixels - 0.3).flatten(1)
    return ((flat @ directions) @ directions.T + 0.3).clamp(0, 1).view_as(pixels)


@pytest.fixture(scope="module")
def readers(digits):
    return Reader(digits, "train"), Reader(digits, "test")


def measured(codec, readers, **options):
    lines = []
    options = Evaluate(batch=100, **options)
    return *measure(codec, *readers, IMAGES, options, 3, lines.append), lines


def test_the_figures_are_those_of_their_definitions(readers):
    codec, pixels = Projection(8, 40, 60, NORMALIZE), pixels_of(readers[1])
    results, linear, lines = measured(codec, readers, controls=False)
    assert linear is None
    assert len(lines) == 1
    outputs = projected(codec, pixels)
    assert ((outputs == 0) | (outputs == 1)).any()  # the clamp has work to do
    difference = outputs - pixels
    sse, mse = (difference**2).sum((1, 2, 3)).mean().item(), (difference**2).mean().item()
    assert mse > 1e-3
    sigma = (difference**2).mean().sqrt()
    log_q = {
        s: Normal(0 * sigma, s * sigma).log_prob(difference).sum((1, 2, 3)).mean().item()
        for s in (0.99, 1, 1.01)
    }
    assert max(log_q, key=log_q.get) == 1  # no other sigma is better
    # pixels of 256 levels: the density of 256·x is that of x divided by 256, an element
    bits = -Normal(0 * sigma, 256 * sigma).log_prob(256 * difference).mean().item() / math.log(2)
    expected = {"sse": sse, "mse": mse, "psnr": 10 * math.log10(1 / mse), "log_q": log_q[1]}
    expected |= {"bits_per_dimension": bits, "swap_ratio": results["reconstruction/swap_ratio"]}
    expected["latent_size"] = 100  # and no SSIM of images of 8 pixels
    assert results == {f"reconstruction/{k}": pytest.approx(v, rel=1e-9) for k, v in expected.items()}


@pytest.mark.parametrize("size", [11, 16])
def test_the_similarity_is_that_of_codec_and_control(readers, size):
    images = replace(IMAGES, size=size)
    codec, lines = Projection(size, 10, 14, NORMALIZE), []
    results, linear = measure(codec, *readers, images, Evaluate(batch=100), 3, lines.append)
    pixels = pixels_of(readers[1], images)
    made = {"": projected(codec, pixels), "control/linear_codec/": linear(pixels)}
    for prefix, outputs in made.items():
        expected = structural_similarity(outputs, pixels).mean().item()
        assert results[f"{prefix}reconstruction/ssim"] == pytest.approx(expected, abs=1e-9)
        assert 0 < expected < 1
    assert all(" ssim " in line for line in lines)


def test_the_swap_ratio_is_that_of_its_pairs(readers, monkeypatch):
    monkeypatch.setattr(reconstruction, "PAIRS", 30)
    codec = Projection(8, 40, 60, NORMALIZE)
    results, *_ = measured(codec, readers, controls=False)
    ids = permutation(readers[1].images, 3, "swapped pairs")[:30]
    pixels = pixels_of(readers[1], ids=ids)
    errors = np.zeros(2)
    for i in range(30):
        image, other = pixels[i], pixels[(i + 1) % 30]
        for which, (of_y, of_w) in enumerate([(other, image), (image, other)]):
            y = codec.to_y.T @ (of_y - 0.3).flatten()
            w = codec.to_w.T @ (of_w - 0.3).flatten()
            made = (codec.to_y @ y + codec.to_w @ w + 0.3).clamp(0, 1).view_as(image)
            errors[which] += ((made - image) ** 2).sum().item()
    assert 0.5 < errors[0] / errors[1] < 1  # w has the more directions
    assert results["reconstruction/swap_ratio"] == pytest.approx(errors[0] / errors[1], rel=1e-6)


def test_the_swap_ratio_tells_who_holds_the_appearance(readers):
    all_in_w = measured(Projection(8, 2, 190, NORMALIZE), readers, controls=False)[0]
    all_in_y = measured(Projection(8, 190, 2, NORMALIZE), readers, controls=False)[0]
    assert all_in_w["reconstruction/swap_ratio"] < 0.02
    assert all_in_y["reconstruction/swap_ratio"] > 50


def test_a_codec_that_loses_nothing_has_finite_figures(readers):
    results, _, _ = measured(Projection(8, 192, 0, NORMALIZE), readers)
    assert all(map(math.isfinite, results.values()))
    assert results["reconstruction/sse"] < 1e-12
    assert results["control/linear_codec/reconstruction/sse"] < 1e-12
    assert summarised(np.zeros(2), 10)["psnr"] == pytest.approx(-20 * math.log10(2**-23))


def test_the_linear_codec_is_pca_of_as_many_numbers(readers):
    codec = Projection(8, 10, 14, NORMALIZE)
    results, linear, lines = measured(codec, readers)
    train, test = (pixels_of(reader).flatten(1).numpy() for reader in readers)
    pca = PCA(24, svd_solver="full").fit(train)
    made = pca.inverse_transform(pca.transform(test)).clip(0, 1)
    sse = ((made - test) ** 2).sum(1).mean()
    control = {
        name.rpartition("/")[2]: value for name, value in results.items() if name.startswith("control/")
    }
    assert control == pytest.approx(
        {"sse": sse, "mse": sse / ELEMENTS, "psnr": -10 * math.log10(sse / ELEMENTS)}, rel=1e-6
    )
    assert sse < results["reconstruction/sse"]
    assert linear.basis.shape == (192, 24)
    assert "24 components:" in lines[1]


def test_a_large_image_is_coded_tile_by_tile(readers):
    assert [tile_side(size) for size in (8, 28, 32, 40, 64, 96, 224)] == [8, 28, 32, 20, 32, 32, 32]
    codec, train, test = Projection(8, 10, 14, NORMALIZE), *readers
    linear = LinearCodec.fit(codec, Sample(train, np.arange(700), IMAGES, 300), side=4)

    def cut(pixels):  # [N, 4 tiles, 48], in the order of a page
        places = [(0, 0), (0, 4), (4, 0), (4, 4)]
        return np.stack([pixels[:, :, r : r + 4, c : c + 4].flatten(1) for r, c in places], axis=1)

    pca = PCA(24 // 4, svd_solver="full").fit(cut(pixels_of(train)[:700]).reshape(-1, 48))
    pixels = pixels_of(test)
    expected = pca.inverse_transform(pca.transform(cut(pixels).reshape(-1, 48))).reshape(-1, 4, 48)
    assert np.abs(cut(linear(pixels)) - expected).max() < 1e-6


def test_a_codec_that_diverged_is_one_line(readers):
    codec = Projection(8, 10, 14, NORMALIZE)
    codec.to_w = codec.to_w * torch.nan
    with pytest.raises(SharedError, match=r"a reconstruction is not a number.*lower optimizer\.lr"):
        measured(codec, readers)


def test_interpolations_begin_at_image_0_and_move_what_they_say(readers):
    codec = Projection(8, 40, 152, NORMALIZE)
    zero, one = next(Sample(readers[1], np.arange(6), IMAGES, 6).views()).split(3)
    frames = interpolated(codec, zero, one, steps=5)
    assert list(frames) == ["all of z", "y only", "w only"]
    first, last = codec.pixels(zero), codec.pixels(one)
    ts = torch.linspace(0, 1, 5, dtype=torch.float64).view(1, 5, 1, 1, 1)
    moved = {"all of z": torch.cat([codec.to_y, codec.to_w], 1), "y only": codec.to_y, "w only": codec.to_w}
    for name, directions in moved.items():
        step = ((last - first).flatten(1) @ directions @ directions.T).view_as(first)
        expected = (first[:, None] + ts * step[:, None]).clamp(0, 1)
        assert frames[name].shape == (3, 5, 3, 8, 8)
        assert (frames[name] - expected).abs().max() < 1e-6
