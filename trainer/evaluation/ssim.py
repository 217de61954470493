"""Structural similarity of images (Wang, Bovik, Sheikh and Simoncelli, IEEE TIP 13(4), 2004)."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # side of the Gaussian window, and its standard deviation, in pixels
NUMBERS = 2**18  # of images at a time: their moments are float64, and five
K1, K2 = 0.01, 0.03  # of the constants C1 = (K1 L)² and C2 = (K2 L)², for a range L of 1


def structural_similarity(outputs: Tensor, pixels: Tensor) -> Tensor:
    """The SSIM of each pair of images [n], float64 on the CPU; outputs and pixels [n, C, H, W] in [0, 1].

    The mean over channels and over those places whose whole window lies within the image (section III.B,
    equation 13); outputs are clamped. Variances are weighted sums, not corrected for the sample.

    Raises:
        ValueError: an image is smaller than the window.
    """
    if min(pixels.shape[2:]) < WINDOW:
        raise ValueError(
            f"size={min(pixels.shape[2:])}: SSIM needs images of at least {WINDOW} pixels a side"
        )
    count = max(1, NUMBERS // pixels[0].numel())
    parts = zip(outputs.clamp(0, 1).split(count), pixels.split(count), strict=True)
    return torch.cat([_similarities(one, other) for one, other in parts]).cpu()


def _similarities(outputs: Tensor, pixels: Tensor) -> Tensor:
    x, y = (images.double().flatten(0, 1)[:, None] for images in (outputs, pixels))
    moments = torch.cat([x, y, x * x, y * y, x * y])
    mean_x, mean_y, square_x, square_y, product = _windowed(moments).chunk(5)
    variances = square_x - mean_x.square() + square_y - mean_y.square()
    covariance = product - mean_x * mean_y
    similarity = (
        (2 * mean_x * mean_y + K1**2)
        * (2 * covariance + K2**2)
        / ((mean_x.square() + mean_y.square() + K1**2) * (variances + K2**2))
    )
    return similarity.unflatten(0, pixels.shape[:2]).mean((1, 2, 3, 4))


def _windowed(maps: Tensor) -> Tensor:
    """The Gaussian-weighted means of maps [m, 1, H, W] around each place that a whole window has."""
    places = torch.arange(WINDOW, dtype=maps.dtype, device=maps.device) - WINDOW // 2
    weights = torch.exp(-places.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    return F.conv2d(F.conv2d(maps, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
