"""(seed, sample position, view) -> the random numbers of an augmentation. Pure functions.

Everything random in a run comes from counter-based streams (Philox 4x64; Salmon et al., SC 2011) keyed by
what the number is for and where it stands in the run. So it depends on no rank, slot, thread or batch size,
and a run that resumes needs no saved state. Only the raw bits of numpy's Philox are used: numpy guarantees
those over versions, not its distributions.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from data_pipelines.views import Crop, View

WIDTH = 32  # uniform numbers for a position and view; the constants below say which is used for what
ATTEMPTS = 10  # of a random resized crop, before the central crop is taken
PLACE, FLIP, JITTER, FACTORS, GRAY, BLUR, SIGMA = 2 * ATTEMPTS, 22, 23, 24, 28, 29, 30


def stream(seed: int, purpose: str, *place: int) -> np.random.Philox:
    """An independent stream of random bits for each (seed, purpose, up to three numbers)."""
    name = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    counter = [0, *place, *[0] * (3 - len(place))]
    key = np.array([seed, name], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array(counter, dtype=np.uint64))


def permutation(n: int, seed: int, purpose: str, *place: int) -> np.ndarray:
    """A random order of range(n), int64 [n]."""
    return np.argsort(stream(seed, purpose, *place).random_raw(n), kind="stable")


def uniforms(seed: int, positions: np.ndarray, view: int) -> np.ndarray:
    """The `WIDTH` numbers in [0, 1) of each position for one view, float64 [n, WIDTH].

    `positions` (int64 [n]) should lie close together, as those of one batch do: their whole span is drawn.
    """
    first, last = int(positions.min()), int(positions.max())
    bits = stream(seed, "augmentation", 0, view)
    bits.advance(first * (WIDTH // 4))  # a step of the counter makes four numbers
    raw = bits.random_raw((last - first + 1) * WIDTH).reshape(-1, WIDTH)
    return (raw[positions - first] >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Draws:
    """The augmentation of n images for one view; arrays [n], lengths in pixels."""

    anchor: np.ndarray  # int32 [n, 2]: top, left of the crop
    shape: np.ndarray  # int32 [n, 2]: height, width of the crop
    flip: np.ndarray  # int32: 1 mirrors left and right
    brightness: np.ndarray  # float32 factors, 1 changes nothing
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray  # float32, degrees
    sigma: np.ndarray  # float32, standard deviation of the blur; 0: none


def draw(view: View, seed: int, positions: np.ndarray, index: int, sizes: np.ndarray) -> Draws:
    """The augmentation of view number `index` for images of `sizes` (int [n, 2]: height, width).

    Source: torchvision's RandomResizedCrop, ColorJitter, RandomGrayscale, GaussianBlur and
    RandomHorizontalFlip as MoCo-v2 composes them (arXiv 2003.04297). One difference: the parts of the jitter
    always have the order brightness, contrast, saturation, hue.
    """
    u = uniforms(seed, positions, index)
    anchor, shape = random_crop(view.crop, u, sizes) if view.crop else central_square(sizes)
    ones = np.ones(len(u), np.float32)
    brightness, contrast, saturation, hue = ones, ones, ones, 0 * ones
    if view.jitter:
        on = u[:, JITTER] < view.jitter.probability
        ranges = (view.jitter.brightness, view.jitter.contrast, view.jitter.saturation, view.jitter.hue)
        shifts = [np.where(on, x * (2 * u[:, FACTORS + i] - 1), 0) for i, x in enumerate(ranges)]
        brightness, contrast, saturation = ((1 + shift).astype(np.float32) for shift in shifts[:3])
        hue = (360 * shifts[3]).astype(np.float32)
    gray = u[:, GRAY] < view.grayscale
    sigma = 0 * ones
    if view.blur:
        low, high = view.blur.sigma.low, view.blur.sigma.high
        on = u[:, BLUR] < view.blur.probability
        sigma = np.where(on, low + (high - low) * u[:, SIGMA], 0).astype(np.float32)
    flip = (u[:, FLIP] < view.flip).astype(np.int32)
    return Draws(
        anchor, shape, flip, brightness, contrast, np.where(gray, np.float32(0), saturation), hue, sigma
    )


def random_crop(crop: Crop, u: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """torchvision's RandomResizedCrop, its ten attempts drawn at once: anchors and shapes, int32 [n, 2]."""
    height, width = sizes[:, :1], sizes[:, 1:]
    tries = u[:, : 2 * ATTEMPTS].reshape(-1, ATTEMPTS, 2)
    area = height * width * (crop.scale.low + (crop.scale.high - crop.scale.low) * tries[:, :, 0])
    low, high = np.log(crop.ratio.low), np.log(crop.ratio.high)
    ratio = np.exp(low + (high - low) * tries[:, :, 1])
    w, h = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (w > 0) & (h > 0) & (w <= width) & (h <= height)
    first = np.argmax(fits, axis=1)
    rows = np.arange(len(u))
    shape = np.stack([h[rows, first], w[rows, first]], axis=1)
    room = sizes - shape
    anchor = np.floor(u[:, PLACE : PLACE + 2] * (room + 1))

    none = ~fits.any(axis=1)  # no attempt fits: the central crop of the nearest allowed ratio
    whole = np.clip(width / height, crop.ratio.low, crop.ratio.high)[:, 0]
    tall, broad = np.minimum(sizes[:, 0], sizes[:, 1] / whole), np.minimum(sizes[:, 1], sizes[:, 0] * whole)
    central = np.maximum(np.rint(np.stack([tall, broad], axis=1)), 1)
    shape = np.where(none[:, None], central, shape)
    anchor = np.where(none[:, None], (sizes - central) // 2, anchor)
    return anchor.astype(np.int32), shape.astype(np.int32)


def central_square(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest central square of each image: anchors and shapes, int32 [n, 2]."""
    side = sizes.min(axis=1, keepdims=True).repeat(2, axis=1)
    return ((sizes - side) // 2).astype(np.int32), side.astype(np.int32)


def windows(sigma: np.ndarray, largest: float) -> np.ndarray:
    """Gaussian windows of standard deviations `sigma` [n], cut off after three of them, rounded up.

    Returns:
        float32 [n, 2 r + 1], summing to 1, where r is three times `largest`, rounded up.
    """
    radius = int(np.ceil(3 * largest))
    distance = np.abs(np.arange(-radius, radius + 1))
    sigma = sigma.astype(np.float64)[:, None]
    weights = np.exp(-(distance**2) / (2 * np.maximum(sigma, 1e-3) ** 2)) * (distance <= np.ceil(3 * sigma))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
