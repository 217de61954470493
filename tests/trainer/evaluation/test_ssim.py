"""Structural similarity against a loop over windows in float64, and what is known of it by definition."""

import math

import pytest
import torch

from trainer.evaluation import ssim
from trainer.evaluation.ssim import structural_similarity


def slow(x, y) -> float:
    """Wang et al., equation 13, at each place of a channel [H, W] that a window of 11 x 11 fits; the mean."""
    weights = [
        [math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)
    ]
    whole = sum(map(sum, weights))
    places = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            at = [(i, j, weights[i][j] / whole) for i in range(11) for j in range(11)]
            one = [(w, x[top + i, left + j].item(), y[top + i, left + j].item()) for i, j, w in at]
            mean_x, mean_y = sum(w * a for w, a, _ in one), sum(w * b for w, _, b in one)
            var_x = sum(w * (a - mean_x) ** 2 for w, a, _ in one)
            var_y = sum(w * (b - mean_y) ** 2 for w, _, b in one)
            both = sum(w * (a - mean_x) * (b - mean_y) for w, a, b in one)
            c1, c2 = 0.01**2, 0.03**2
            places.append(
                (2 * mean_x * mean_y + c1)
                * (2 * both + c2)
                / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
            )
    return sum(places) / len(places)


@pytest.mark.parametrize("numbers", [1, 1000, 2**18])
def test_it_is_the_slow_loop(monkeypatch, numbers):
    monkeypatch.setattr(ssim, "NUMBERS", numbers)
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(3, 3, 13, 12, generator=generator, dtype=torch.float64)
    outputs = pixels + torch.tensor([0.05, 0.3, 0.0]).view(3, 1, 1, 1) * torch.randn(
        pixels.shape, generator=generator
    )
    outputs[2] = 0.4  # a flat image
    made = structural_similarity(outputs, pixels)
    assert (made.dtype, made.shape) == (torch.float64, (3,))
    for value, out, image in zip(made, outputs.clamp(0, 1), pixels, strict=True):
        assert value.item() == pytest.approx(sum(map(slow, out, image)) / 3, abs=1e-12)
    assert made[0] > made[1] > made[2]
    narrow = structural_similarity(outputs.float(), pixels.float())
    assert (narrow - made).abs().max() < 1e-6


def test_an_image_is_similar_to_itself_alone():
    image = torch.rand(2, 3, 11, 20)
    assert torch.allclose(structural_similarity(image, image), torch.ones(2, dtype=torch.float64))
    assert (structural_similarity(1 - image, image) < 0.2).all()


def test_what_lies_outside_of_the_range_is_clamped():
    image = torch.zeros(1, 1, 11, 11)
    assert structural_similarity(image - 3, image).item() == 1


def test_a_small_image_is_refused():
    with pytest.raises(ValueError, match="size=10: SSIM needs images of at least 11 pixels a side"):
        structural_similarity(torch.rand(1, 3, 32, 10), torch.rand(1, 3, 32, 10))
