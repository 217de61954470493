"""The plan of a diffusion: published parameter counts, operations counted by hand, what is not there yet."""

import json
import re

import pytest
import torch

from tests.helpers.command_lines import mistake, script
from tests.helpers.recipes import write
from trainer.recipe.loading import load
from trainer.tasks.diffusion_plan import forward_flop, parts_of
from trainer.training.diffusion import build_diffusion

RECIPE = """
task: diffuse
batch: 64
images: 2560
objective: {kind: diffusion, process: ddim}
optimizer: {kind: adam, lr: 1e-3}
save: {every: 1280}
log: {every: 640}
"""


def planned(capsys, *words: str) -> list[str]:
    done = script(capsys, *words, "--plan")
    assert done.status == 0, done.err
    return [" ".join(line.split()) for line in done.out.splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory: no data and no run is there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "parameters", "sample"),
    [
        # The counts of DDPM's U-Net for CIFAR-10, for 3 x 32 x 32 as published and for a latent of six maps.
        (["data={root: data/cifar10, source: cifar10, size: 32, views: [{flip: 0.5}]}"],
         35_746_307, "x of 3 x 32 x 32; D = 3,072"),
        (["from=outputs/hybrid_cifar10"], 34_766_342, "z of 6 x 16 x 16; D = 1,536"),
    ],
)  # fmt: skip
def test_networks_of_full_size_have_the_published_parameters(capsys, folder, words, parameters, sample):
    lines = planned(capsys, write(folder, "full", RECIPE), *words)
    assert f"data samples: {sample}" in lines
    part = next(line for line in lines if line.startswith("parameters network"))
    assert part.startswith(f"parameters network {parameters:,} average {parameters:,}; ")
    assert f"in all {2 * parameters:,}" in lines
    bytes_of_weights = 2 * 4 * parameters
    assert any(f"beside activations: parameters {bytes_of_weights / 1e6:,.1f} MB" in line for line in lines)
    assert "training 2,560 images = 40 steps of 64" in lines
    assert not list(folder.glob("outputs")) + list(folder.glob("data"))  # a question writes nothing


def test_a_run_that_is_not_there_is_planned_by_its_recipe(capsys, folder):
    lines = planned(capsys, "recipe=diffuse_cifar10_small")
    first = "train it first: accelerate launch "
    (line,) = [line for line in lines if first in line]
    assert line.startswith("latents of outputs/hybrid_cifar10_pooled_small, which is not there yet; ")
    assert line.endswith("recipe=hybrid_cifar10_pooled_small")
    assert lines[1].startswith(
        "data samples: y of 768 numbers in 128 components, then w of 3 x 16 x 16; D = 1,536"
    )
    cost = next(line for line in lines if line.startswith("w: network"))
    assert float(re.search(r"([\d.]+) GFLOP an image forward", cost)[1]) <= 0.25


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["from=outputs/nothing"], "from=outputs/nothing: no run there yet; train a hybrid or an "),
        (["from=outputs/dim_local"], "from=outputs/dim_local: objective.kind=dim has no decoder, so "),
        (["from=outputs/hybrid_cifar10_pooled_small", "objective.components=999"], "but y has 768"),
        (["from=outputs/hybrid_cifar10", "objective.components=9"], "are those of a pooled y, and z is"),
        (["from=outputs/hybrid_cifar10", "draw.guidance=2"], "draw.guidance=2 needs a condition"),
        (["from=outputs/hybrid_cifar10", "batch=63"], "batch=63"),
        (["from=outputs/hybrid_cifar10", "objective.map.multipliers=[1, 1, 1, 1, 1, 1]"], "objective.map.m"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_one_line(capsys, folder, words, message):
    assert message in mistake(script(capsys, write(folder, "bad", RECIPE), *words, "--plan"))


@pytest.mark.parametrize("task", ["sample", "measure"])
def test_only_training_is_planned(capsys, task):
    line = mistake(script(capsys, f"recipe={task}", "--plan"))
    assert line == f"--plan: recipe {task} is of task {task}; only training is planned"


def test_images_that_are_there_are_counted(capsys, folder, digits):
    images = json.loads((digits.root / "dataset.json").read_text())["splits"]["train"]["images"]
    small = "objective.map={width: 16, multipliers: [1, 2], attention: [8], blocks: 1}"
    data = f"data={{root: {digits.root}, source: digits, size: 16, views: [{{}}]}}"
    lines = planned(capsys, write(folder, "pixels", RECIPE), small, data)
    assert any(f"(digits): {images:,} training images" in line for line in lines)
    assert f"{images:,} images an epoch = {images / 64:.1f} steps; {2560 / images:.1f} epochs" in lines
    assert any(
        re.match(r"2 ranks 32 images a step = 16 x 2; each reads [\d.]+ MB an epoch", line) for line in lines
    )


def test_operations_of_a_vector_s_network_are_those_of_its_layers():
    words = ["recipe=diffuse_cifar10", "objective.vector={width: 64, layers: 2}", "objective.map.width=32"]
    with torch.device("meta"):
        parts = parts_of(build_diffusion(load(words).recipe, {"y": (768,), "w": (3, 16, 16)}))
    assert list(parts) == ["y", "w"]
    waves = parts["y"].average.temb.dense[0].in_features
    time = waves * 64 + 64 * 64
    layers = 2 * (64 * 64 + 64 * 64 + 64 * 3 * 64)
    ends = 768 * 64 + 64 * 2 * 64 + 64 * 768
    assert forward_flop(parts["y"], (768,), None) == 2 * (time + layers + ends)
    without = forward_flop(parts["w"], (3, 16, 16), None)
    width = parts["w"].average.temb.condition.out_features
    assert forward_flop(parts["w"], (3, 16, 16), (768,)) - without == 2 * 768 * width
