"""Resident views against DALI's of the same draws, against float64, and their independence of the batch."""

import numpy as np
import pytest
import torch

from data_pipelines.dali_pipeline import ImagePipeline
from data_pipelines.draws import draw
from data_pipelines.resident_views import make_view
from data_pipelines.views import Blur, Crop, Normalize, Range, View
from tests.data_pipelines.test_dali import CPU, CROP, FACTORS, MOCO, VALUES, encoded, fixed, gaussian_blur
from tests.helpers.tiny_dataset import pictures

N = 256
DIM = View(crop=CROP.crop, flip=0.5)
HSV = MOCO.model_copy(update={"hue": "hsv"})
BLUR = View(crop=Crop(scale=Range(low=0.2, high=1.0)), blur=Blur(sigma=Range(low=0.1, high=2.0)))


def resident(images, view, draws, size, normalize=VALUES, ids=None):
    ids = np.arange(len(images)) if ids is None else ids
    return make_view(torch.from_numpy(images), ids, view, draws, size, normalize)


@pytest.mark.parametrize("view", [View(), DIM, MOCO, HSV, BLUR], ids=["plain", "dim", "moco", "hsv", "blur"])
@pytest.mark.parametrize(("side", "size"), [(32, 32), (96, 64)])
def test_views_are_dalis_but_for_rounding(view, side, size):
    images, sizes = pictures(N, side, side), np.full((N, 2), side)
    draws = draw(view, 3, np.arange(N), 0, sizes)
    (expected,) = ImagePipeline([view], [0], size, VALUES, N, 2, CPU)([encoded(images)], [sizes], [draws])
    actual = resident(images, view, draws, size)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    error = (actual - expected).abs()
    assert error.mean() <= 0.01
    assert (error > 4).sum() <= 1  # seen: 4.05, hsv at 96 px
    assert error.max() <= 4.1
    assert (error > 0.5).float().mean() <= 1e-3


def test_plain_images_and_mirrored_ones_are_exact():
    images, flip = pictures(48), np.arange(48) % 2
    expected = np.where(flip[:, None, None, None], images[:, :, ::-1], images)
    actual = resident(images, DIM, fixed(flip=flip), 32).permute(0, 2, 3, 1)
    assert np.array_equal(actual, expected)


def test_blur_and_brightness_against_float64():
    images, sigma = pictures(48), np.linspace(0.1, 2.0, 48)
    draws = fixed(sigma=sigma, brightness=FACTORS)
    bright = np.clip(FACTORS[:, None, None, None] * images, 0, 255).round()
    expected = np.stack([gaussian_blur(pixels, s) for pixels, s in zip(bright, sigma, strict=True)])
    actual = resident(images, MOCO, draws, 32).permute(0, 2, 3, 1).double().numpy()
    assert np.abs(actual - expected).max() < 1.01  # a tie of the rounding
    assert np.abs(actual - expected).mean() < 0.01


@pytest.mark.parametrize("view", [MOCO, HSV, BLUR], ids=["yiq", "hsv", "blur"])
def test_equal_bits_in_any_batch_order_and_threads(view):
    images, sizes, threads = pictures(N), np.full((N, 2), 32), torch.get_num_threads()
    whole = resident(images, view, draw(view, 3, np.arange(N), 0, sizes), 24, Normalize())
    order = np.random.default_rng(0).permutation(N)
    try:
        for count, cuts in ((1, [1, 8, 100]), (2, [64, 128])):
            torch.set_num_threads(count)
            for part in np.split(order, cuts):
                draws = draw(view, 3, part, 0, sizes[part])
                assert torch.equal(resident(images, view, draws, 24, Normalize(), part), whole[part])
    finally:
        torch.set_num_threads(threads)
