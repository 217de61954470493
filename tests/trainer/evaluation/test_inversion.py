"""Images to noise and back: against loops, and a denoiser whose noise is known in closed form."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipelines.common.errors import UserError
from tests.helpers.tiny_diffusion import context_of, digit_images, pixel_diffusion, tiny_unet
from trainer.evaluation import probes
from trainer.evaluation.inversion import measure
from trainer.evaluation.pixel_diffusion import Images
from trainer.recipe.pixel_evaluation import Inversion

FIGURE = "probe/linear/inverted_noise"


class OfGaussians(torch.nn.Module):
    """The best v of flow matching where all data are one standard normal: noise then is the sample itself."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, noisy, time, condition=None, conditioned=None):
        t = (time / 1000).reshape(-1, 1, 1, 1).to(noisy.dtype)
        return self.scale * noisy * (2 * t - 1) / ((1 - t) ** 2 + t**2)


def closed(tmp_path, train=400, test=100, **changes):
    splits = digit_images(train, test)
    return context_of(pixel_diffusion(OfGaussians(), splits[0]), tmp_path, *splits, **changes)


def test_errors_are_those_of_a_loop_over_the_steps(tmp_path):
    context, steps = closed(tmp_path), 20
    figures = measure(context, Inversion(steps=steps, images=100, train_images=0))
    mean, std = (part.double().item() for part in (context.objective.mean, context.objective.std))
    total = 0.0
    for image in context.test.pixels:
        x = (image.astype(np.float64) / 127.5 - 1 - mean) / std
        times = [k / steps for k in range(steps + 1)]
        for now, then in [
            *itertools.pairwise(times),
            *itertools.pairwise(times[::-1]),
        ]:
            x = x + (then - now) * x * (2 * now - 1) / ((1 - now) ** 2 + now**2)
        pixels = (x * std + mean + 1) / 2
        total += ((pixels.clip(0, 1) - image / 255) ** 2).sum()
    assert figures["generation/inversion/sse"] == pytest.approx(total / 100, rel=1e-4)
    assert figures["generation/inversion/mse"] == pytest.approx(total / 100 / 192, rel=1e-4)
    assert figures["generation/inversion/psnr"] == pytest.approx(-10 * math.log10(total / 19200), rel=1e-4)
    assert figures["generation/inversion/images"] == 100
    assert figures["generation/inversion/steps"] == steps
    assert len(figures) == 5


def test_the_error_falls_with_the_steps(tmp_path):
    context = closed(tmp_path)
    errors = [
        measure(context, Inversion(steps=steps, images=50, train_images=0))["generation/inversion/mse"]
        for steps in (10, 20, 50, 100, 200)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 50


def test_the_probe_reads_the_noise_of_training_and_test_images(tmp_path):
    """With many steps the noise of a standard normal is the image, so its probe is that of pixels."""
    context = closed(tmp_path)
    figures = measure(context, Inversion(steps=300, images=100, train_images=400))
    pixels = [torch.from_numpy(images.pixels).flatten(1).float() for images in (context.train, context.test)]
    labels = [torch.from_numpy(images.labels) for images in (context.train, context.test)]
    accuracy, fit = probes.linear_probe(pixels[0], labels[0], pixels[1], labels[1], 10, context.linear)
    assert accuracy > 0.8
    assert figures[FIGURE] == pytest.approx(accuracy, abs=0.021)
    assert figures[f"{FIGURE}/objective"] == pytest.approx(fit.objective, rel=1e-2)
    fewer = measure(context, Inversion(steps=2, images=100, train_images=30))
    assert fewer[FIGURE] < accuracy


@pytest.mark.parametrize(("process", "predict"), [("ddim", "eps"), ("edm", "v"), ("flow", "x")])
def test_every_process_goes_there_and_back(tmp_path, process, predict):
    splits = digit_images(60, 10)
    context = context_of(pixel_diffusion(tiny_unet(), splits[0], process, predict), tmp_path, *splits)
    figures = measure(context, Inversion(steps=8, images=10, train_images=60))
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["generation/inversion/mse"] > 0
    assert FIGURE in figures


def test_without_labels_there_are_errors_of_all_images_and_no_probe(tmp_path):
    said = []
    context = closed(tmp_path, say=said.append)
    nameless = Images("test", context.test.pixels, np.full(100, -1))
    figures = measure(replace(context, test=nameless), Inversion(steps=10, images=1000))
    assert figures["generation/inversion/images"] == 100
    assert FIGURE not in figures
    assert said == [line for line in said if line.startswith("  inversion, 10 steps: sse ")]


def test_a_denoiser_that_diverged_is_one_line(tmp_path):
    context = closed(tmp_path)
    with torch.no_grad():
        context.objective.average.scale.fill_(torch.nan)
    with pytest.raises(
        UserError, match="generation/inversion: a number is not finite: the denoiser diverged"
    ):
        measure(context, Inversion(steps=10, images=10))
