"""Every recipe of diffusion trains two steps at its full size, on samples of the shape of its encoder's."""

import numpy as np
import pytest
import torch

from tests.helpers.forked_ranks import single_context
from trainer.recipe.diffusion import Diffuse
from trainer.recipe.loading import RECIPES, load
from trainer.tasks.latent_source import latent_shapes
from trainer.training.data import RowData
from trainer.training.diffusion import build_diffusion, fit_scalings, sample_shapes
from trainer.training.trainer import Trainer

DIFFUSIONS = sorted(
    path.stem for path in RECIPES.glob("*.yaml") if isinstance(load([f"recipe={path.stem}"]).recipe, Diffuse)
)
PARAMETERS = {"ddim_cifar10": 35_746_307, "diffuse_cifar10_map": 34_746_246}
