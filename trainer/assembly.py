"""From a recipe to the things it names: encoder, objective, optimizer."""

import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from data_pipelines.errors import UserError
from trainer.networks.dim_alexnet import DimAlexNet, FoldedAlexNet
from trainer.networks.dim_encoder import DimEncoder
from trainer.networks.folded_resnet import FoldedResNet
from trainer.networks.resnet import ResNet
from trainer.objectives.dim import Dim
from trainer.recipe import Optimizer, Pretrain

ENCODERS = {
    "dim": DimEncoder,
    "dim_alexnet": DimAlexNet,
    "folded_alexnet": FoldedAlexNet,
    "folded_resnet": FoldedResNet,
    "resnet": ResNet,
}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.float32}  # of the parameters


def build_objective(recipe: Pretrain) -> nn.Module:
    """The objective with its encoder, equal on every rank and in every run of this seed.

    Raises:
        UserError: encoder, objective and data do not fit together.
    """
    if recipe.groups.negatives == "global" and recipe.accumulate > 1:
        raise UserError(
            f"groups.negatives=global with accumulate={recipe.accumulate}: the negatives of a micro-batch "
            "would be its own images alone; set accumulate=1, or a number of images"
        )
    torch.manual_seed(recipe.seed)
    try:
        objective = Dim(
            build_encoder(encoder_options(recipe)),
            recipe.objective,
            recipe.encoder.norm,
            recipe.groups.norm,
            negatives(recipe),
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    if len(recipe.data.views) != objective.VIEWS:
        raise UserError(
            f"data.views describes {len(recipe.data.views)} views; objective.kind={recipe.objective.kind} "
            f"reads {objective.VIEWS}"
        )
    return objective.to(DTYPES[recipe.precision], memory_format=torch.channels_last)


def negatives(recipe: Pretrain) -> int | None:
    """Images that are each other's negatives; None: all of the batch."""
    chosen = recipe.groups.negatives or recipe.groups.norm
    return None if chosen == "global" else chosen


def group_unit(recipe: Pretrain) -> int:
    """The images that must stay on one rank: the least number of whole groups of every kind."""
    return math.lcm(recipe.groups.norm, negatives(recipe) or 1)


def encoder_options(recipe: Pretrain) -> dict:
    """All that an encoder is built from, as plain values: exported with its weights."""
    options = recipe.encoder.model_dump()
    return options | {"size": recipe.data.size, "group": recipe.groups.norm}


def build_encoder(options: dict) -> nn.Module:
    """An encoder from `encoder_options`.

    It has `local_channels`, `local_side` and `widths`, the features that evaluation reads; called with images
    it returns these and the `local` map; `tail()` is a fresh network of its layers behind that map.

    Raises:
        ValueError: its sizes do not fit the images.
    """
    return ENCODERS[options["kind"]](**{name: value for name, value in options.items() if name != "kind"})


def load_encoder(path: Path | str) -> nn.Module:
    """An exported encoder, ready for use: `load_encoder("…/export/encoder.safetensors")(images)["y"]`.

    It takes images [n, 3, size, size] normalised as the file's metadata entry `normalize` says.

    Raises:
        UserError: the file is missing or is not an export of this program.
    """
    try:
        with safe_open(path, framework="pt") as file:
            options = json.loads(file.metadata()["encoder"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: no exported encoder ({error}); expected export/encoder.safetensors"
        ) from None
    encoder = build_encoder(options).to(next(iter(weights.values())).dtype)
    encoder.load_state_dict(weights)
    return encoder.eval().requires_grad_(False)


def build_optimizer(options: Optimizer, parameters) -> torch.optim.Optimizer:
    """Adam or AdamW over `parameters`. Fused: one kernel, and a step count that stays on the device."""
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[options.kind](
        parameters,
        lr=options.lr,
        betas=tuple(options.betas),
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=True,
    )
