"""Hue in HSV against torchvision's formulas in float64, alone and in whole views."""

import numpy as np
import pytest
from nvidia.dali import fn
from nvidia.dali.pipeline import pipeline_def

from data_pipelines.dali_hsv import saturation_and_hue
from data_pipelines.hsv import BLOCK, SaturationAndHue, thirds_and_steps
from data_pipelines.views import Jitter, View
from tests.data_pipelines.test_dali import FACTORS, LUMA, PIXELS, SIDE, N, encoded, fixed, per_image, run

JITTER = View(jitter=Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.5), hue="hsv")
EVERY_ANGLE = np.concatenate(
    [np.linspace(-180, 180, N - 11), np.arange(-180, 181, 60), [-36, -1e-3, 1e-3, 36]]
)
LEVELS = np.array([0, 1, 2, 127, 128, 200, 254, 255])
CUBE = np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS), axis=-1).reshape(16, 32, 3).astype(np.uint8)


def saturated(images: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """torchvision's `adjust_saturation` in float64, 0..255: images [n, h, w, 3], a factor an image."""
    images = images.astype(np.float64)
    grey = (images @ LUMA)[..., None]
    return np.clip(grey + per_image(factors) * (images - grey), 0, 255)


def turned(images: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """torchvision's `adjust_hue` in float64, by its `_rgb2hsv` and `_hsv2rgb`: 0..255, an angle an image."""
    red, green, blue = np.moveaxis(images / 255.0, -1, 0)
    value, least = images.max(axis=-1) / 255.0, images.min(axis=-1) / 255.0
    chroma = value - least
    saturation = chroma / np.where(chroma == 0, 1, value)
    divisor = np.where(chroma == 0, 1, chroma)
    rc, gc, bc = (value - red) / divisor, (value - green) / divisor, (value - blue) / divisor
    h = np.where(value == red, bc - gc, np.where(value == green, 2 + rc - bc, 4 + gc - rc))
    h = np.mod(np.where(chroma == 0, 0, h) / 6 + degrees[:, None, None] / 360, 1)
    sector = np.floor(6 * h)
    f = 6 * h - sector
    p, q, t = (value * (1 - saturation * x) for x in (1, f, 1 - f))
    rows = [(value, t, p), (q, value, p), (p, value, t), (p, q, value), (t, p, value), (value, p, q)]
    parts = [np.stack(row, axis=-1) for row in rows]
    return 255 * np.select([(sector % 6 == number)[..., None] for number in range(6)], parts)


def change(images, factors, degrees) -> np.ndarray:
    changed = SaturationAndHue()(list(images), list(np.float32(factors)), list(np.float32(degrees)))
    return np.stack(changed).astype(np.float64)


# ---- against the oracle ------------------------------------------------------------------------------


def test_the_oracle_turns_pure_colours():
    red = np.full((4, 1, 1, 3), [255.0, 0, 0])
    expected = [[255, 0, 0], [255, 255, 0], [0, 255, 0], [0, 0, 255]]
    assert np.allclose(turned(red, np.array([0, 60, 120, -120]))[:, 0, 0], expected)


def test_hue_alone():
    actual = run(JITTER, encoded(PIXELS), fixed(hue=EVERY_ANGLE))
    assert np.abs(actual - turned(PIXELS, np.float32(EVERY_ANGLE))).max() < 1e-3


def test_saturation_and_hue():
    actual = run(JITTER, encoded(PIXELS), fixed(saturation=FACTORS, hue=EVERY_ANGLE))
    expected = turned(saturated(PIXELS, np.float32(FACTORS)), np.float32(EVERY_ANGLE))
    assert np.abs(actual - expected).max() < 1e-3


@pytest.mark.parametrize("factor", [0.6, 1, 1.4, 2])
def test_extreme_pixels_at_every_angle(factor):
    """Black, white and grey, pure colours, equal channels, and neighbours of all of these."""
    degrees = np.float32(EVERY_ANGLE)
    images, factors = np.stack([CUBE] * len(degrees)), np.full(len(degrees), np.float32(factor))
    actual = change(images, factors, degrees)
    assert np.abs(actual - turned(saturated(images, factors), degrees)).max() < 1e-3
    assert actual.min() >= 0
    assert actual.max() <= 255
    grey = (CUBE[..., :1] == CUBE).all(axis=-1)
    assert grey.sum() == len(LEVELS)
    assert np.abs(actual - images)[:, grey].max() < 1e-4


def test_value_and_the_least_channel_stay():
    """What YIQ does not keep: hue moves alone."""
    actual = change(PIXELS, np.ones(N), EVERY_ANGLE)
    for extreme in (np.max, np.min):
        assert np.abs(extreme(actual, axis=-1) - extreme(PIXELS, axis=-1)).max() < 1e-4


def test_nothing_to_change_changes_nothing():
    assert np.array_equal(run(JITTER, encoded(PIXELS), fixed()), PIXELS)
    assert np.array_equal(change([CUBE], [1], [0])[0], CUBE)


@pytest.mark.parametrize("view", [JITTER, JITTER.model_copy(update={"grayscale": 0.5})])
def test_grey_views_are_those_of_yiq(view):
    """Grey in whole numbers, as PIL has it, whatever the angle."""
    grey = fixed(brightness=FACTORS, saturation=np.zeros(N), hue=EVERY_ANGLE)
    yiq = view.model_copy(update={"hue": "yiq"})
    assert np.array_equal(run(view, encoded(PIXELS), grey), run(yiq, encoded(PIXELS), grey))


def test_jitter_goes_brightness_contrast_saturation_hue():
    others, degrees = (FACTORS[::-1], np.roll(FACTORS, 7)), np.float32(np.linspace(-36, 36, N))
    images = np.clip(per_image(FACTORS) * PIXELS, 0, 255).round()
    centre = per_image((images @ LUMA).mean(axis=(1, 2)))
    images = np.clip(centre + per_image(others[0]) * (images - centre), 0, 255)
    expected = turned(saturated(images, others[1]), degrees)
    draws = fixed(brightness=FACTORS, contrast=others[0], saturation=others[1], hue=degrees)
    error = np.abs(run(JITTER, encoded(PIXELS), draws) - expected)
    assert error.mean() <= 0.6
    assert np.quantile(error, 0.999) <= 3  # a rounding before it can turn the hue of what is nearly grey


def test_a_view_without_jitter_is_the_same_in_either():
    draws = fixed(flip=np.arange(N) % 2, saturation=np.arange(N) % 3)
    views = [View(flip=0.5, grayscale=0.3, hue=hue) for hue in ("hsv", "yiq")]
    assert np.array_equal(*(run(view, encoded(PIXELS), draws) for view in views))


# ---- two forms, any batch ----------------------------------------------------------------------------


def test_the_form_for_gpus_is_the_same_but_for_rounding():
    """The arithmetic of a GPU's graph, computed on the CPU."""

    @pipeline_def(batch_size=N, num_threads=2, device_id=None)
    def both():
        image = fn.external_source(name="image", layout="HWC")
        inputs = image, fn.external_source(name="saturation"), fn.external_source(name="degrees")
        return saturation_and_hue(*inputs, "cpu"), saturation_and_hue(*inputs, "gpu")

    pipeline = both()
    pipeline.build()
    images = np.concatenate([PIXELS, np.stack([CUBE] * N)], axis=1)
    pipeline.feed_input("image", images)
    pipeline.feed_input("saturation", np.float32(np.linspace(0, 2, N)))
    pipeline.feed_input("degrees", np.float32(EVERY_ANGLE))
    cpu, gpu = pipeline.run()
    assert cpu.layout() == gpu.layout() == "HWC"
    cpu, gpu = (np.array(output.as_tensor()) for output in (cpu, gpu))
    assert cpu.dtype == gpu.dtype == np.float32
    assert np.abs(cpu - gpu).max() < 1e-3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (SIDE, SIDE), (150, 150), (1, BLOCK + 1)])
def test_an_image_s_bytes_depend_on_no_other_image(height, width):
    rng = np.random.default_rng(height * width)
    images = rng.integers(0, 256, (7, height, width, 3), np.uint8)
    factors, degrees = np.float32(rng.uniform(0.6, 1.4, 7)), np.float32(rng.uniform(-180, 180, 7))
    alone = np.concatenate([change([images[i]], [factors[i]], [degrees[i]]) for i in range(7)])
    operator = SaturationAndHue()  # its memory is used again, for fewer and for more
    for order in (np.arange(7), np.array([4, 2]), np.arange(7)[::-1], np.array([5])):
        changed = operator(list(images[order]), list(factors[order]), list(degrees[order]))
        assert np.array_equal(np.stack(changed), alone[order])
    assert operator([], [], []) == []
    assert np.abs(alone - turned(saturated(images, factors), degrees)).max() < 1e-3


def test_angles_are_split_at_odd_sixths():
    degrees = np.float32([-180, -61, -60, -59, 0, 59, 61, 120, 180])
    thirds, steps = thirds_and_steps(degrees)
    assert np.abs(steps).max() <= 1
    assert np.allclose((120 * thirds + 60 * steps - degrees + 1) % 360, 1)
