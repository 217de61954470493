"""Images to noise and back: against loops, and a denoiser whose noise is known in closed form."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipelines.common.errors import SharedError
from data_pipelines.dali import in_order
from data_pipelines.reader import Reader
from tests.helpers.labelled_dataset import write_labelled
from tests.helpers.tiny_diffusion import context_of, pixel_diffusion, tiny_unet
from trainer.evaluation import probes
from trainer.evaluation.inversion import measure
from trainer.evaluation.pixel_diffusion import chosen
from trainer.recipe.pixel_evaluation import Inversion

FIGURE = "probe/linear/inverted_noise"
ERRORS = "generation/inversion/"


class OfGaussians(torch.nn.Module):
    """The best v of flow matching where all data are one standard normal: noise then is the sample itself."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(()))

    def forward(self, noisy, time, condition=None, conditioned=None):
        t = (time / 1000).reshape(-1, 1, 1, 1).to(noisy.dtype)
        return noisy * (2 * t - 1) / ((1 - t) ** 2 + t**2) + self.bias


@pytest.fixture
def closed(digits, tmp_path):
    """A context whose denoiser is known, exactly."""
    objective = pixel_diffusion(OfGaussians())
    torch.nn.init.zeros_(objective.average.bias)
    with Reader(digits, "train") as train, Reader(digits, "test") as test:
        yield context_of(objective, tmp_path, train, test)


def views_of(context, reader, ids):
    """Normalised images of a split and their labels."""
    return next(in_order(reader, context.images, ids, len(ids)))


def test_errors_are_those_of_a_loop_over_the_steps(closed):
    steps = 20
    figures = measure(closed, Inversion(steps=steps, images=100, train_images=0))
    scaling, ids = (
        closed.objective.scaling,
        chosen(np.arange(closed.test.images), 100, 3, "generation/inversion"),
    )
    total = 0.0
    for view in views_of(closed, closed.test, ids)[0].double().numpy():
        x = (view - scaling.mean.item()) / scaling.std.item()
        times = [k / steps for k in range(steps + 1)]
        for now, then in [*itertools.pairwise(times), *itertools.pairwise(times[::-1])]:
            x = x + (then - now) * x * (2 * now - 1) / ((1 - now) ** 2 + now**2)
        pixels = (x * scaling.std.item() + scaling.mean.item() + 1) / 2
        total += ((pixels.clip(0, 1) - (view + 1) / 2) ** 2).sum()
    assert figures[f"{ERRORS}sse"] == pytest.approx(total / 100, rel=1e-4)
    assert figures[f"{ERRORS}mse"] == pytest.approx(total / 100 / 192, rel=1e-4)
    assert figures[f"{ERRORS}psnr"] == pytest.approx(-10 * math.log10(total / 19200), rel=1e-4)
    assert (figures[f"{ERRORS}images"], figures[f"{ERRORS}steps"]) == (100, steps)
    assert len(figures) == 5


def test_the_error_falls_with_the_steps(closed):
    errors = [
        measure(closed, Inversion(steps=steps, images=50, train_images=0))[f"{ERRORS}mse"]
        for steps in (10, 20, 50, 100, 200)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 50


def test_the_probe_reads_the_noise_of_training_and_test_images(closed):
    """With many steps the noise of a standard normal is the image, so its probe is that of pixels."""
    figures = measure(closed, Inversion(steps=300, images=200, train_images=400))
    train = chosen(np.arange(closed.train.images), 400, 3, "inverted_noise")
    test = chosen(np.arange(closed.test.images), 200, 3, "generation/inversion")
    data = [views_of(closed, closed.train, train), views_of(closed, closed.test, test)]
    (x, y), (test_x, test_y) = ((views.flatten(1), labels) for views, labels in data)
    accuracy, fit = probes.linear_probe(x, y, test_x, test_y, 10, closed.linear)
    assert accuracy > 0.8
    assert figures[FIGURE] == pytest.approx(accuracy, abs=0.011)
    assert figures[f"{FIGURE}/objective"] == pytest.approx(fit.objective, rel=1e-2)
    assert measure(closed, Inversion(steps=2, images=200, train_images=30))[FIGURE] < accuracy


@pytest.mark.parametrize(("process", "predict"), [("ddim", "eps"), ("edm", "v"), ("flow", "x")])
def test_every_process_goes_there_and_back(tmp_path, closed, process, predict):
    context = replace(closed, objective=pixel_diffusion(tiny_unet(), process, predict))
    figures = measure(context, Inversion(steps=8, images=10, train_images=60))
    assert all(math.isfinite(value) for value in figures.values())
    assert figures[f"{ERRORS}mse"] > 0
    assert FIGURE in figures


def test_without_labels_there_are_errors_of_all_images_and_no_probe(closed, tmp_path):
    said = []
    data = write_labelled(tmp_path / "data", test=[0, 0, 0, 0, 40])
    with Reader(data, "test") as bare:
        context = replace(closed, test=bare, images=replace(closed.images, size=16), say=said.append)
        figures = measure(context, Inversion(steps=10, images=1000))
    assert figures[f"{ERRORS}images"] == 40
    assert FIGURE not in figures
    assert [line[:31] for line in said] == ["  inversion, 10 steps: sse " + said[0][27:31]]


def test_a_denoiser_that_diverged_is_one_line(closed):
    torch.nn.init.constant_(closed.objective.average.bias, torch.nan)
    with pytest.raises(
        SharedError, match="generation/inversion: a number is not finite: the denoiser diverged"
    ):
        measure(closed, Inversion(steps=10, images=10))
