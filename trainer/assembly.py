"""From a recipe to the things it names: encoder and objective."""

import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from data_pipelines.errors import UserError
from data_pipelines.plan import Shuffle, check_division
from data_pipelines.spec import View
from trainer.networks.dim_alexnet import DimAlexNet, FoldedAlexNet
from trainer.networks.dim_encoder import DimEncoder
from trainer.networks.folded_resnet import FoldedResNet
from trainer.networks.nvae import NvaeEncoder
from trainer.networks.resnet import ResNet
from trainer.objectives.autoencoder import Autoencoder
from trainer.objectives.dim import Dim
from trainer.objectives.hybrid import Hybrid
from trainer.objectives.moco import Moco
from trainer.recipe import Pretrain
from trainer.recipe_objectives import Contrast, DimObjective, MocoObjective, contrast_key, contrastive
from trainer.recipe_yaml import flow

ENCODERS = {
    "dim": DimEncoder,
    "dim_alexnet": DimAlexNet,
    "folded_alexnet": FoldedAlexNet,
    "folded_resnet": FoldedResNet,
    "resnet": ResNet,
    "nvae": NvaeEncoder,
}
CLEAN = ": with reconstruct=clean the last is the clean one, an empty section {}"
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.float32}  # of the parameters


def build_objective(recipe: Pretrain) -> nn.Module:
    """The objective with its encoder, equal on every rank and in every run of this seed.

    Raises:
        UserError: encoder, objective and data do not fit together.
    """
    options = recipe.objective
    if recipe.groups.negatives is not None and not isinstance(contrastive(options), DimObjective):
        raise UserError(
            f"groups.negatives={recipe.groups.negatives}: objective.kind={options.kind} takes none from the "
            "batch, as a dim objective does; leave that key out"
        )
    if recipe.encoder.norm == "batch" and recipe.groups.norm < 2:
        raise UserError(
            f"groups.norm={recipe.groups.norm}: a group needs at least 2 images, for encoder.norm=batch "
            "takes statistics over it; 32 or 64 is usual, or set encoder.norm=group"
        )
    torch.manual_seed(recipe.seed)
    try:
        encoder = build_encoder(encoder_options(recipe))
        if contrastive(options) is not options and not hasattr(encoder, "decoder"):
            raise UserError(
                f"objective.kind={options.kind} with encoder.kind={recipe.encoder.kind}, which has no "
                "decoder; expected encoder.kind=nvae"
            )
        if options.kind == "autoencoder":
            objective = Autoencoder(encoder, recipe.data.normalize)
        elif options.kind == "hybrid":
            contrast = build_contrast(recipe, options.contrast, encoder)
            objective = Hybrid(contrast, options, recipe.data.normalize)
        else:
            objective = build_contrast(recipe, options, encoder)
    except ValueError as error:
        text = str(error).replace("objective.queue.", f"{contrast_key(options)}queue.")
        raise UserError(text) from None
    clean = getattr(options, "reconstruct", "view") == "clean"
    if len(recipe.data.views) != objective.VIEWS:
        raise UserError(
            f"data.views describes {len(recipe.data.views)} views; objective.kind={recipe.objective.kind} "
            f"reads {objective.VIEWS}" + CLEAN * clean
        )
    if clean and recipe.data.views[-1] != View():
        given = flow(recipe.data.views[-1].model_dump(exclude_defaults=True))
        raise UserError(f"data.views.{objective.VIEWS - 1}: expected {{}}, got {given}{CLEAN}")
    return objective.to(DTYPES[recipe.precision], memory_format=torch.channels_last)


def build_contrast(recipe: Pretrain, options: Contrast, encoder: nn.Module) -> Dim | Moco:
    """The contrastive objective on an encoder.

    Raises:
        UserError, ValueError: its groups or its queue do not work.
    """
    if isinstance(options, MocoObjective):
        return Moco(encoder, options, recipe.batch, DTYPES[recipe.precision], recipe.seed)
    if recipe.groups.negatives == "global" and recipe.accumulate > 1:
        raise UserError(
            f"groups.negatives=global with accumulate={recipe.accumulate}: the negatives of a micro-batch "
            "would be its own images alone; set accumulate=1, or a number of images"
        )
    return Dim(encoder, options, recipe.encoder.norm, recipe.groups.norm, negatives(recipe))


def key_shuffle(recipe: Pretrain) -> Shuffle | None:
    """Of which views batch-norm's groups are shuffled: those that keys are made of (ShuffleBN)."""
    options = contrastive(recipe.objective)
    if not isinstance(options, MocoObjective) or recipe.encoder.norm != "batch":
        return None
    return Shuffle(views=(1,), group=recipe.groups.norm, groups=options.shuffle)


def blocks_span_ranks(recipe: Pretrain, world: int) -> bool:
    """Whether key views belong to other ranks' samples, so that they are read and decoded a second time."""
    shuffle = key_shuffle(recipe)
    return shuffle is not None and recipe.batch // world % (shuffle.group * shuffle.groups) > 0


def check_shares(recipe: Pretrain, world: int) -> None:
    """Whether every rank and micro-batch gets whole groups, and batch and micro-batches whole blocks of them.

    Raises:
        UserError: naming what works.
    """
    if shuffle := key_shuffle(recipe):
        block = shuffle.group * shuffle.groups
        key = f"{contrast_key(recipe.objective)}shuffle"
        what = f"{key}={shuffle.groups} groups of groups.norm={shuffle.group}"
        # Micro-batches of other ranks are not there to travel from; nor is the first view a key as well.
        inside = recipe.accumulate > 1 or contrastive(recipe.objective).symmetric
        parts = world * recipe.accumulate
        held = recipe.batch // (parts if inside else 1) // shuffle.group  # groups that blocks are made of
        whole = recipe.batch % (parts * shuffle.group) == 0
        fewer = [n for n in range(2, min(shuffle.groups, 1024)) if whole and held % n == 0]
        ways = [f"{key}={fewer[-1]}"] if fewer else []
        check_division(recipe.batch, 1, 1, block, what, ways)
        if inside:
            check_division(recipe.batch, world, recipe.accumulate, block, what, ways)
    check_division(recipe.batch, world, recipe.accumulate, group_unit(recipe), "groups")


def negatives(recipe: Pretrain) -> int | None:
    """Images that are each other's negatives; None: all of the batch."""
    chosen = recipe.groups.negatives or recipe.groups.norm
    return None if chosen == "global" else chosen


def group_unit(recipe: Pretrain) -> int:
    """The images that must stay on one rank: the least number of whole groups of every kind."""
    return math.lcm(recipe.groups.norm, negatives(recipe) or 1)


def compared(recipe: Pretrain) -> int:
    """The images of a batch in which information is estimated on held-out images.

    Whole groups of in-batch negatives; with a queue up to 256 images, which are each other's negatives.
    """
    unit = group_unit(recipe)
    if isinstance(contrastive(recipe.objective), MocoObjective):
        return max(1, min(recipe.batch, 256) // unit) * unit
    return unit


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
        encoder = build_encoder(options).to(next(iter(weights.values())).dtype)
        encoder.load_state_dict(weights)
    except (
        OSError,
        SafetensorError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
    ) as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"{path}: no exported encoder ({why}); expected export/encoder.safetensors") from None
    return encoder.eval().requires_grad_(False)
