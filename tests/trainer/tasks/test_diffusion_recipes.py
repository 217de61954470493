"""Every recipe of diffusion trains two steps at its full size, on samples of the shape of its encoder's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from trainer.distributed import launch
from trainer.recipe.diffusion import Diffuse
from trainer.recipe.loading import RECIPES, load
from trainer.tasks.latent_source import latent_shapes
from trainer.training.data import RowData
from trainer.training.diffusion import build_diffusion, fit_scalings, sample_shapes
from trainer.training.trainer import Trainer

DIFFUSIONS = sorted(
    path.stem for path in RECIPES.glob("*.yaml") if isinstance(load([f"recipe={path.stem}"]).recipe, Diffuse)
)
A_CHANNEL = 128 * 9 + 128 * 9 + 1  # of the first and of the last convolution
PARAMETERS = {
    "ddim_cifar10": 35_746_307,  # DDPM's, as published
    "diffuse_cifar10_map": 34_775_562 - 4 * A_CHANNEL,  # D2C's for ten channels
    "diffuse_cifar10": 34_775_562 - 7 * A_CHANNEL + (256 + 1) * 512,  # and y's way into the embedded time
}


def shapes_of(recipe: Diffuse) -> dict[str, tuple[int, ...]]:
    """What is drawn, where `from` is the folder of the recipe that bears its name."""
    latent = {} if recipe.from_ is None else latent_shapes(load([f"recipe={Path(recipe.from_).name}"]).recipe)
    return sample_shapes(recipe, latent)


@pytest.fixture
def context(monkeypatch):
    for name in ("ACCELERATE_USE_CPU", "ACCELERATE_ALLOW_CPU"):
        monkeypatch.setenv(name, "true")
    AcceleratorState._reset_state(True)
    yield launch.start("float32")
    AcceleratorState._reset_state(True)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFUSIONS)
def test_two_steps_at_full_size(name, context):
    recipe = load([f"recipe={name}", "batch=2", "precision=float32"]).recipe
    shapes = shapes_of(recipe)
    draw = np.random.default_rng(0)
    tables = {part: draw.standard_normal((300, *shape), np.float32) for part, shape in shapes.items()}
    options = recipe.objective
    if "y" in tables and options.components:
        directions = draw.standard_normal((options.components, *shapes["y"])).astype(np.float32)
        tables["y"] = draw.standard_normal((300, options.components), np.float32) @ directions
    scalings = None if recipe.from_ is None else fit_scalings(recipe, tables)
    trainer = Trainer(
        recipe,
        context,
        build_diffusion(recipe, shapes, scalings),
        RowData("drawn", tables, recipe, context.device),
    )
    try:
        before = {key: value.clone() for key, value in trainer.objective.state_dict().items()}
        losses = [trainer.step()["loss"].item() for _ in range(2)]
    finally:
        trainer.close()
    assert np.isfinite(losses).all()
    numbers = sum(int(np.prod(shape)) for shape in shapes.values())
    assert 0.2 < losses[0] / numbers < 5, "a network that says 0 errs by about 1 a number"
    moved = {
        key for key, value in trainer.objective.state_dict().items() if not torch.equal(value, before[key])
    }
    assert any(".network." in f".{key}" for key in moved)
    assert any(".average." in f".{key}" for key in moved)
    assert trainer.images == 4


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_the_published_networks(name):
    recipe = load([f"recipe={name}"]).recipe
    with torch.device("meta"):
        objective = build_diffusion(recipe, shapes_of(recipe))
    part = objective.w if hasattr(objective, "w") else objective
    assert part.sizes()["parameters"] == PARAMETERS[name]
