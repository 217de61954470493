"""Random numbers belong to places in the run, and follow the distributions they are said to follow."""

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import pytest
import torch

from data_pipelines.draws import ATTEMPTS, PLACE, WIDTH, Draws, draw, permutation, random_crop, uniforms
from data_pipelines.noise import Noise
from data_pipelines.views import Blur, Crop, Jitter, Range, View

MOCO = View(
    crop=Crop(scale=Range(low=0.2, high=1.0)),
    jitter=Jitter(brightness=0.4, contrast=0.4, saturation=0.3, hue=0.1, probability=0.8),
    grayscale=0.2,
    blur=Blur(sigma=Range(low=0.1, high=2.0), probability=0.5),
    flip=0.3,
)
NAMES = [field.name for field in fields(Draws)]


def some_sizes(n: int) -> np.ndarray:
    """Heights and widths from 1 to 600 pixels, int64 [n, 2]; every position has its own."""
    return np.exp(np.random.default_rng(0).uniform(0, np.log(600), (n, 2))).astype(np.int64)


def within_four_sigma(share: float, probability: float, n: int) -> bool:
    return abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / n)


# ---- the numbers -------------------------------------------------------------------------------------


def philox(key: tuple[int, int], counter: list[int]) -> list[int]:
    """Philox 4x64-10 as published (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")."""
    (k0, k1), (c0, c1, c2, c3), mask = key, counter, (1 << 64) - 1
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (b >> 64) ^ c1 ^ k0, b & mask, (a >> 64) ^ c3 ^ k1, a & mask
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("seed", "position", "view"), [(0, 0, 0), (7, 1, 1), (2**64 - 1, 10**12 + 3, 2)])
def test_uniforms_are_philox_counted_by_position_and_view(seed, position, view):
    purpose = int.from_bytes(hashlib.sha256(b"augmentation").digest()[:8], "little")
    steps = range(position * WIDTH // 4 + 1, (position + 1) * WIDTH // 4 + 1)
    bits = [number for step in steps for number in philox((seed, purpose), [step, 0, view, 0])]
    expected = [(number >> 11) / 2**53 for number in bits]
    assert uniforms(seed, np.array([position]), view)[0].tolist() == expected


def test_uniforms_are_uniform_and_unrelated():
    n, bins = 20_000, 16
    u = uniforms(3, np.arange(n), 1)
    assert u.shape == (n, WIDTH)
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.stack([np.bincount((column * bins).astype(int), minlength=bins) for column in u.T])
    squares = ((counts - n / bins) ** 2 / (n / bins)).sum(axis=1)  # chi-square, bins - 1 degrees of freedom
    assert squares.max() < bins - 1 + 5 * math.sqrt(2 * (bins - 1))
    others = np.concatenate(
        [u, u[np.r_[1:n, 0]], uniforms(3, np.arange(n), 0), uniforms(4, np.arange(n), 1)], 1
    )
    related = np.abs(np.corrcoef(others.T) - np.eye(4 * WIDTH))
    assert related.max() < 5.5 / math.sqrt(n)  # the largest of 8,128 pairs


# ---- draws of a place --------------------------------------------------------------------------------


def test_draws_depend_on_position_alone():
    n = 128
    positions, sizes = 10**10 + np.arange(n), some_sizes(n)
    whole = draw(MOCO, 11, positions, 1, sizes)

    def same(rows: np.ndarray) -> bool:
        part = draw(MOCO, 11, positions[rows], 1, sizes[rows])
        return all(np.array_equal(getattr(part, name), getattr(whole, name)[rows]) for name in NAMES)

    rng = np.random.default_rng(1)
    pieces = [np.arange(n)[part] for size in (1, 7, 64) for part in np.array_split(np.arange(n), n // size)]
    pieces += [rng.permutation(n), rng.choice(n, 9), np.arange(n)[::-1], np.arange(3, n, 50)]
    assert all(same(rows) for rows in pieces)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, pieces))


def test_seed_view_and_position_change_every_field():
    positions, sizes = np.arange(1000), np.full((1000, 2), 224)
    reference = draw(MOCO, 0, positions, 0, sizes)
    for other in (
        draw(MOCO, 1, positions, 0, sizes),
        draw(MOCO, 0, positions, 1, sizes),
        draw(MOCO, 0, positions + 1000, 0, sizes),
    ):
        for name in NAMES:
            assert not np.array_equal(getattr(reference, name), getattr(other, name)), name


def test_a_view_without_options_is_the_central_square_untouched():
    d = draw(View(), 0, np.arange(3), 0, np.array([[10, 10], [9, 20], [31, 8]]))
    assert d.anchor.tolist() == [[0, 0], [0, 5], [11, 0]]
    assert d.shape.tolist() == [[10, 10], [9, 9], [8, 8]]
    neutral = {"flip": 0, "brightness": 1, "contrast": 1, "saturation": 1, "hue": 0, "sigma": 0}
    for name, value in neutral.items():
        assert (getattr(d, name) == value).all(), name


def test_rates_and_ranges():
    n = 40_000
    d = draw(MOCO, 5, np.arange(n), 0, np.full((n, 2), 32))
    gray = d.saturation == 0
    on = {
        "flip": (d.flip == 1, 0.3),
        "brightness": (d.brightness != 1, 0.8),
        "contrast": (d.contrast != 1, 0.8),
        "hue": (d.hue != 0, 0.8),
        "gray": (gray, 0.2),
        "blur": (d.sigma > 0, 0.5),
    }
    for name, (rows, probability) in on.items():
        assert within_four_sigma(rows.mean(), probability, n), name
    assert np.array_equal(d.brightness != 1, d.hue != 0)  # the jitter is applied as a whole or not at all
    independent = ("flip", "hue", "gray", "blur")
    for i, a in enumerate(independent):
        for b in independent[:i]:
            both, expected = (on[a][0] & on[b][0]).mean(), on[a][1] * on[b][1]
            assert within_four_sigma(both, expected, n), (a, b)

    jittered = on["hue"][0]
    values = {
        "brightness": (d.brightness[jittered], 0.6, 1.4),
        "contrast": (d.contrast[jittered], 0.6, 1.4),
        "saturation": (d.saturation[jittered & ~gray], 0.7, 1.3),
        "hue": (d.hue[jittered], -36, 36),
        "sigma": (d.sigma[on["blur"][0]], 0.1, 2.0),
    }
    for name, (actual, low, high) in values.items():
        assert low - 1e-6 <= actual.min() < low + 0.001 * (high - low), name
        assert high - 0.001 * (high - low) < actual.max() <= high + 1e-6, name
        error = abs(actual.mean() - (low + high) / 2)
        assert error < 4 * (high - low) / math.sqrt(12 * len(actual)), name


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_never_and_always(probability):
    view = View(
        flip=probability,
        grayscale=probability,
        jitter=Jitter(hue=0.5, probability=probability),
        blur=Blur(sigma=Range(low=1.0, high=1.0), probability=probability),
    )
    d = draw(view, 0, np.arange(2000), 0, np.full((2000, 2), 8))
    for applied in (d.flip == 1, d.saturation == 0, d.hue != 0, d.sigma == 1):
        assert applied.mean() == probability


# ---- the random resized crop -------------------------------------------------------------------------


def torchvision_crop(height: int, width: int, scale: Range, ratio: Range, u) -> tuple[int, int, int, int]:
    """torchvision 0.28, RandomResizedCrop.get_params, on given numbers: top, left, height, width."""
    log_ratio = math.log(ratio.low), math.log(ratio.high)
    for attempt in range(10):
        target_area = height * width * (scale.low + (scale.high - scale.low) * u[2 * attempt])
        aspect_ratio = math.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * u[2 * attempt + 1])
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u[PLACE] * (height - h + 1)), int(u[PLACE + 1] * (width - w + 1)), h, w
    in_ratio = width / height
    if in_ratio < ratio.low:
        w, h = width, round(width / ratio.low)
    elif in_ratio > ratio.high:
        h, w = height, round(height * ratio.high)
    else:
        w, h = width, height
    w, h = max(w, 1), max(h, 1)  # torchvision would fail on a crop of no pixels
    return (height - h) // 2, (width - w) // 2, h, w


EXTREME = [(1, 500), (500, 1), (1, 1), (2, 3), (32, 32), (7, 640), (481, 3), (1, 2), (3, 4), (333, 500)]


@pytest.mark.parametrize(
    "crop",
    [
        Crop(scale=Range(low=0.2, high=1.0)),
        Crop(scale=Range(low=0.08, high=1.0)),
        Crop(scale=Range(low=1.0, high=1.0), ratio=Range(low=1.0, high=1.0)),
        Crop(scale=Range(low=0.9, high=1.0), ratio=Range(low=0.1, high=0.2)),
    ],
)
def test_boxes_are_those_of_torchvisions_loop(crop):
    sizes = np.concatenate([some_sizes(1500), np.repeat(EXTREME, 50, axis=0)])
    positions = np.arange(len(sizes))
    u = uniforms(9, positions, 0)
    assert 2 * ATTEMPTS <= PLACE  # the place of the box shares no number with its size
    d = draw(View(crop=crop), 9, positions, 0, sizes)
    expected = [
        torchvision_crop(h, w, crop.scale, crop.ratio, row)
        for (h, w), row in zip(sizes.tolist(), u, strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate([d.anchor, d.shape], axis=1), expected)
    assert (d.shape >= 1).all()
    assert (d.anchor >= 0).all()
    assert (d.anchor + d.shape <= sizes).all()


def test_areas_and_ratios_of_crops_follow_their_distributions():
    n = 20_000
    crop = Crop(scale=Range(low=0.2, high=0.5))  # small enough that the first attempt fits
    sizes = np.full((n, 2), 1000)
    anchor, shape = random_crop(crop, uniforms(1, np.arange(n), 0), sizes)
    area = shape.prod(axis=1) / 1e6
    ratio = np.log(shape[:, 1] / shape[:, 0]) / math.log(4 / 3)
    place = (anchor + 0.5) / (1000 - shape + 1)
    for values, low, high in ((area, 0.2, 0.5), (ratio, -1, 1), (place[:, 0], 0, 1), (place[:, 1], 0, 1)):
        assert low - 0.01 < values.min()
        assert values.max() < high + 0.01
        expected = low + (high - low) * np.arange(1, 10) / 10
        actual = np.quantile(values, np.arange(1, 10) / 10)
        assert np.abs(actual - expected).max() < 4 * (high - low) * 0.5 / math.sqrt(n) + 2e-3


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((1, 500), (0, 249, 1, 1)),
        ((500, 1), (249, 0, 1, 1)),
        ((30, 3000), (0, 1480, 30, 40)),
        ((3000, 30), (1480, 0, 40, 30)),
    ],
)
def test_extreme_images_get_the_central_crop(size, box):
    crop = Crop(scale=Range(low=0.5, high=1.0))
    anchor, shape = random_crop(crop, uniforms(0, np.arange(50), 0), np.tile([size], (50, 1)))
    assert np.unique(np.concatenate([anchor, shape], axis=1), axis=0).tolist() == [list(box)]


# ---- other streams -----------------------------------------------------------------------------------


def test_permutations_are_of_their_seed_purpose_and_place():
    orders = [
        permutation(200, *key)
        for key in [
            (0, "a"),
            (1, "a"),
            (0, "b"),
            (0, "a", 1),
            (0, "a", 0, 1),
            (0, "a", 0, 0, 1),
            (0, "a", 2**63),
        ]
    ]
    assert all(np.array_equal(np.sort(order), np.arange(200)) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)
    assert np.array_equal(orders[3], permutation(200, 0, "a", 1))


def numbers(noise: Noise, purpose: str, group: int) -> list[float]:
    """The first number of each group's generator."""
    device = torch.device("cpu")
    return [
        torch.rand((), generator=g, dtype=torch.float64).item() for g in noise.groups(purpose, group, device)
    ]


@pytest.mark.parametrize("group", [8, 16])
def test_noise_is_the_same_however_the_batch_is_cut(group):
    batch, seen = 128, 6400
    whole = numbers(Noise(3, seen, 0, batch), "prior", group)
    assert len(set(whole)) == batch // group
    for pieces in (2, 4, 8):  # ranks times micro-batches
        n = batch // pieces
        cut = [number for i in range(pieces) for number in numbers(Noise(3, seen, i * n, n), "prior", group)]
        assert cut == whole
    for other in (
        numbers(Noise(4, seen, 0, batch), "prior", group),
        numbers(Noise(3, seen + batch, 0, batch), "prior", group),
        numbers(Noise(3, seen, 0, batch), "dropout", group),
    ):
        assert not set(whole) & set(other)
