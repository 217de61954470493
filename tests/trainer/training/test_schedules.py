"""Schedules: pure functions of images seen."""

import math

import pytest

from trainer.recipe.loading import load
from trainer.training.schedules import interval_passed, learning_rate, whole_batches


def recipe(*overrides: str):
    fixed = ["batch=100", "images=10000", "optimizer.lr=1e-2"]
    kind = [] if any(word.startswith("schedule") for word in overrides) else ["schedule={kind: constant}"]
    return load(["recipe=quickstart", *fixed, *kind, *overrides]).recipe


def test_constant_stays():
    rates = {learning_rate(recipe(), images) for images in (0, 100, 5000, 9900)}
    assert rates == {1e-2}


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_warm_up_is_linear_and_its_first_step_already_learns(kind):
    warm = recipe(f"schedule={{kind: {kind}, warmup: 1000}}")
    for step in range(10):
        assert learning_rate(warm, 100 * step) == pytest.approx(1e-2 * (step + 1) / 10)
    assert learning_rate(warm, 1000) == pytest.approx(1e-2)


def test_warm_up_shorter_than_a_batch_is_none():
    warm = recipe("schedule={kind: constant, warmup: 30}")
    assert learning_rate(warm, 0) == pytest.approx(1e-2)


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_falls_along_half_a_wave(final):
    cosine = recipe(f"schedule={{kind: cosine, warmup: 2000, final: {final}}}")
    for progress in (0, 0.25, 0.5, 0.75, 1):
        images = round(2000 + 8000 * progress)
        wave = (1 + math.cos(math.pi * progress)) / 2
        assert learning_rate(cosine, images) == pytest.approx(1e-2 * (final + (1 - final) * wave))
    rates = [learning_rate(cosine, images) for images in range(2000, 10001, 100)]
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(cosine, 10050) == pytest.approx(1e-2 * final)  # past the end: the run's last batch


def test_cosine_without_warm_up_begins_at_the_top():
    assert learning_rate(recipe("schedule={kind: cosine}"), 0) == pytest.approx(1e-2)


def test_due_is_a_multiple_passed():
    assert interval_passed(100, 0, 100)
    assert interval_passed(100, 99, 100)
    assert interval_passed(100, 150, 450)
    assert not interval_passed(100, 100, 199)
    assert not interval_passed(100, 100, 100)
    assert not interval_passed(0, 0, 1000)  # never


@pytest.mark.parametrize("every", [64, 100, 128, 1000])
@pytest.mark.parametrize("batch", [32, 100, 192])
def test_due_comes_as_often_as_multiples_are_passed_wherever_a_run_was_resumed(every, batch):
    steps = [(batch * step, batch * (step + 1)) for step in range(60)]
    passed = [after for before, after in steps if interval_passed(every, before, after)]
    multiples = range(every, 60 * batch + 1, every)
    assert passed == sorted({-(-multiple // batch) * batch for multiple in multiples})


@pytest.mark.parametrize(
    ("images", "batch", "whole"), [(1, 64, 64), (64, 64, 64), (65, 64, 128), (1000, 128, 1024)]
)
def test_a_run_is_rounded_up_to_whole_batches(images, batch, whole):
    assert whole_batches(images, batch) == whole
