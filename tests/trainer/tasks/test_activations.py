"""What a step keeps between forward and backward pass: counted without numbers, as in a real step."""

import pytest
import torch

from trainer.recipe.loading import load
from trainer.tasks.activations import empty_batch, saved_by, saved_bytes
from trainer.training.build import build_objective
from trainer.training.diffusion import build_diffusion, sample_shapes

RECIPES = [
    ["recipe=moco_cifar10_small", "encoder.width=16"],
    ["recipe=dim_complete_small"],
    ["recipe=hybrid_cifar10_small", "encoder.width=8"],
    ["recipe=hybrid_cifar10_resnet_small", "encoder.width=8", "precision=bf16"],
    ["recipe=simclr_cifar10_small", "encoder.width=16"],
]


@pytest.mark.parametrize("words", RECIPES, ids=lambda words: words[0].removeprefix("recipe="))
def test_fake_tensors_keep_what_real_ones_do(words):
    recipe = load(words).recipe
    objective, size = build_objective(recipe).train(), recipe.data.size
    views = [(3, size, size)] * len(recipe.data.views)
    images = 2 * recipe.groups.norm if recipe.groups.norm < 64 else recipe.groups.norm
    real = saved_by(objective, empty_batch(recipe, views, images), recipe.precision == "bf16")
    fake = saved_bytes(recipe, objective, views, images)
    assert real > images * 3 * size**2 * 4
    assert abs(fake - real) <= 0.02 * real


def test_a_diffusion_on_latents():
    recipe = load(["recipe=diffuse_cifar10_small", "from=somewhere", "precision=float32"]).recipe
    shapes = sample_shapes(recipe, {"y": (768,), "w": (3, 16, 16)})
    objective, views = build_diffusion(recipe, shapes).train(), list(shapes.values())
    real = saved_by(objective, empty_batch(recipe, views, 8), False)
    fake = saved_bytes(recipe, objective, views, 8)
    assert abs(fake - real) <= 0.02 * real


def test_a_linear_layer_by_hand():
    """Its input is kept, its weight is a parameter's; the square keeps its own input."""

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(6, 5)

        def forward(self, batch):
            return self.layer(batch.views[0]).square().sum()

    recipe = load(["recipe=dim_local"]).recipe
    assert saved_by(Layer(), empty_batch(recipe, [(6,)], 7), False) == 4 * (7 * 6 + 7 * 5)
