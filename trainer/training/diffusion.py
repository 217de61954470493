"""From a recipe of task diffuse to its objective: networks, scalings and their average."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from data_pipelines.common.errors import UserError
from data_pipelines.rows import Table
from trainer.generation.latents import map_moments, vector_moments
from trainer.generation.processes import PROCESSES
from trainer.generation.scaling import Components, Scaling, principal_components
from trainer.networks.denoising_mlp import DenoisingMlp
from trainer.networks.unet import UNet
from trainer.objectives.denoiser import Averaging, Diffusion, PooledDiffusion
from trainer.objectives.objective import Objective
from trainer.recipe.denoisers import DiffusionObjective
from trainer.recipe.diffusion import Diffuse
from trainer.training.build import named
from trainer.training.data import DTYPES

ROUNDING = 1e-6  # of latents, which are float32: numbers that differ by less than this share are equal
Shapes = Mapping[str, tuple[int, ...]]


def sample_shapes(recipe: Diffuse, latent: Shapes) -> dict[str, tuple[int, ...]]:
    """What is drawn, in its order: `x` images; `z` a latent of maps; or `y` a vector, then `w` a map.

    Args:
        latent: of y and w, [d] of a vector or [C, H, W] of a map; empty for images.
    """
    if recipe.data is not None:
        return {"x": (3, recipe.data.size, recipe.data.size)}
    if len(latent["y"]) == 1:
        return {"y": latent["y"], "w": latent["w"]}
    channels = latent["y"][0] + latent["w"][0]
    return {"z": (channels, *latent["w"][1:])}


def build_diffusion(
    recipe: Diffuse, shapes: Shapes, scalings: Mapping[str, Scaling] | None = None
) -> Objective:
    """The denoiser of a recipe, equal on every rank and in every run of this seed.

    Args:
        shapes: of what is drawn, `sample_shapes`.
        scalings: of the samples, `fit_scalings`; None: blank ones, which a checkpoint fills.

    Raises:
        UserError: the networks do not fit the samples.
    """
    scalings = scalings or {name: _blank(recipe.objective, shape) for name, shape in shapes.items()}
    torch.manual_seed(recipe.seed)
    with named({"multipliers": "objective.map."}, "objective."):
        parts = {name: _part(recipe, name, shapes, scalings[name]) for name in shapes}
    objective = PooledDiffusion(parts["y"], parts["w"]) if "y" in parts else next(iter(parts.values()))
    dtype = DTYPES[recipe.precision]
    return objective.to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it


def _part(recipe: Diffuse, name: str, shapes: Shapes, scaling: Scaling) -> Diffusion:
    """The denoiser of x, y, z or w."""
    options = recipe.objective
    network: UNet | DenoisingMlp
    if name == "y":
        network = DenoisingMlp(numbers_of(options, shapes["y"]), options.vector.width, options.vector.layers)
    else:
        condition = numbers_of(options, shapes["y"]) if name == "w" else 0
        channels, side, _ = shapes[name]
        network = UNet(channels, side, **options.map.model_dump(), condition=condition)
    return Diffusion(
        *(network, PROCESSES[options.process](), options.prediction, scaling),
        Averaging(options.half_life, options.ramp),
        recipe.batch,
        drop=options.drop if name == "w" else 0.0,
        conditional=name == "w",
        purpose=f"diffusion {name}",
    )


def numbers_of(options: DiffusionObjective, y: tuple[int, ...]) -> int:
    """How many numbers of a pooled y [d] are drawn."""
    return options.components or y[0]


# ---- scalings --------------------------------------------------------------------------------------


def fit_scalings(recipe: Diffuse, tables: Mapping[str, Table]) -> dict[str, Scaling]:
    """Those of the samples in tables of y, of w or of z.

    Raises:
        UserError: numbers do not vary, or y has fewer components than are asked for.
    """
    return {name: _fitted(recipe.objective, table) for name, table in tables.items()}


def _fitted(options: DiffusionObjective, table: Table) -> Scaling:
    if table[np.arange(1)].ndim == 2:
        mean, covariance = vector_moments(table)
        if options.components:
            check_variation(covariance.trace(), mean.square().sum())
            with named({}, "objective."):
                return principal_components(mean, covariance, options.components)
        return Scaling(mean, standard_deviations(covariance.diagonal(), mean, "numbers of y"))
    mean, variance = map_moments(table, options.scale)
    return Scaling(mean, standard_deviations(variance, mean, f"{options.scale}s of the latent"))


def check_variation(variance: Tensor, squared_mean: Tensor) -> None:
    """Raises UserError: y is the same for all training images."""
    if variance <= ROUNDING**2 * squared_mean:
        raise UserError(
            "y is the same for all training images, for the encoder of `from` has collapsed; give another run"
        )


def standard_deviations(variance: Tensor, mean: Tensor, what: str) -> Tensor:
    """Raises UserError: one is zero, as far as float32 tells."""
    if still := int((variance <= (ROUNDING * mean).square()).sum()):
        raise UserError(
            f"{what}: {still} of {variance.numel()} do not vary over the training images, for the encoder of "
            "`from` has collapsed there; objective.components draws those directions of y that vary, "
            "objective.scale=channel needs whole channels to vary"
        )
    return variance.sqrt()


def _blank(options: DiffusionObjective, shape: tuple[int, ...]) -> Scaling:
    """Shapes of `fit_scalings`, of images the identity: those are normalised when they are read."""
    if len(shape) == 1:
        if options.components:
            numbers = options.components
            return Components(torch.zeros(shape), torch.zeros(*shape, numbers), torch.ones(numbers))
        return Scaling(torch.zeros(shape), torch.ones(shape))
    shape = (shape[0], 1, 1) if options.scale == "channel" else shape
    return Scaling(torch.zeros(shape), torch.ones(shape))
