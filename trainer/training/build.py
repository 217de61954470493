"""From a recipe to what is trained: objective, data, trainer. One table of builders, a row a kind."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from data_pipelines.common.errors import UserError
from data_pipelines.common.retry import to_stderr
from data_pipelines.dataset import Dataset
from data_pipelines.views import View
from trainer.distributed.launch import DistributedContext
from trainer.networks.build import build_encoder
from trainer.networks.encoder import Encoder
from trainer.objectives.autoencoder import Autoencoder
from trainer.objectives.decoder_noise import DecoderNoise
from trainer.objectives.dim import Dim
from trainer.objectives.hybrid import Hybrid
from trainer.objectives.moco import Moco
from trainer.objectives.objective import ContrastiveObjective, EncoderObjective
from trainer.objectives.simclr import Simclr
from trainer.recipe.objective import ObjectiveOptions
from trainer.recipe.objectives import (
    AutoencoderObjective,
    DimObjective,
    HybridObjective,
    MocoObjective,
    SimclrObjective,
)
from trainer.recipe.schema import Pretrain
from trainer.recipe.yaml12 import to_yaml_line
from trainer.training.compiling import compile_networks
from trainer.training.data import DTYPES, ImageData
from trainer.training.trainer import Trainer

ImageTrainer = Trainer[Pretrain, ImageData, EncoderObjective]  # of encoders, on images

CLEAN = ": with reconstruct=clean the last is the clean one, an empty section {}"


def build_trainer(
    recipe: Pretrain,
    context: DistributedContext,
    dataset: Dataset,
    saved: Mapping[str, Tensor] | None = None,
    images: int = 0,
    warn: Callable[[str], None] = to_stderr,
    stopping: Callable[[], bool] = lambda: False,
) -> ImageTrainer:
    """The trainer of a pretraining recipe; the arguments are those of `Trainer` and `ImageData`."""
    objective = build_objective(recipe).to(context.device)
    compile_networks(recipe, context.engine, objective, warn)
    data = ImageData(recipe, dataset, context.device, warn, stopping)
    return Trainer(recipe, context, objective, data, saved, images)


def build_objective(recipe: Pretrain) -> EncoderObjective:
    """The objective with its encoder, equal on every rank and in every run of this seed.

    Raises:
        UserError: encoder, objective and data do not fit together.
    """
    check_parts(recipe)
    torch.manual_seed(recipe.seed)
    of_encoder, contrast = dict.fromkeys(recipe.encoder_options(), "encoder."), recipe.objective.contrast_key
    with named(of_encoder | {"size": "data."}, "encoder."):
        encoder = build_encoder(recipe.encoder_options())
    of_groups = {"norm": "groups.", "negatives": "groups."}
    with named(of_encoder | of_groups | {"keys": f"{contrast}queue."}, contrast):
        objective = build_part(recipe, recipe.objective, encoder)
    dtype = DTYPES[recipe.precision]
    return objective.to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it


@contextmanager
def named(sections: dict[str, str], default: str) -> Iterator[None]:
    """Puts the recipe's section in front of an argument that does not fit: `default` where none is named.

    Raises:
        UserError: for a ValueError whose text begins with an argument, "size=33 …" or "halvings: …".
    """
    try:
        yield
    except ValueError as error:
        if not (argument := re.match(r"([\w.]+)(?=[=:])", str(error))):
            raise
        raise UserError(f"{sections.get(argument[0], default)}{error}") from None


# ---- the builders ----------------------------------------------------------------------------------


def _dim(recipe: Pretrain, options: DimObjective, encoder: Encoder) -> Dim:
    return Dim(encoder, options, recipe.encoder.norm, recipe.groups.norm, recipe.groups.negative_images)


def _moco(recipe: Pretrain, options: MocoObjective, encoder: Encoder) -> Moco:
    return Moco(encoder, options, recipe.batch, DTYPES[recipe.precision], recipe.seed, recipe.images)


def _simclr(recipe: Pretrain, options: SimclrObjective, encoder: Encoder) -> Simclr:
    negatives = recipe.groups.negative_images
    return Simclr(encoder, options, recipe.encoder.norm, recipe.groups.norm, negatives)


def _autoencoder(recipe: Pretrain, options: AutoencoderObjective, encoder: Encoder) -> Autoencoder:
    noise = DecoderNoise.of(options.decoder_noise, recipe.groups.norm, encoder)
    return Autoencoder(encoder, recipe.data.normalize, noise)


def _hybrid(recipe: Pretrain, options: HybridObjective, encoder: Encoder) -> Hybrid:
    contrast = build_part(recipe, options.contrast, encoder)
    assert isinstance(contrast, ContrastiveObjective)
    noise = DecoderNoise.of(options.decoder_noise, recipe.groups.norm, encoder)
    return Hybrid(contrast, options, recipe.data.normalize, noise)


BUILDERS: dict[str, Callable[..., EncoderObjective]] = {
    "dim": _dim,
    "moco": _moco,
    "simclr": _simclr,
    "autoencoder": _autoencoder,
    "hybrid": _hybrid,
}


def build_part(recipe: Pretrain, options: ObjectiveOptions, encoder: Encoder) -> EncoderObjective:
    """An objective, or the contrastive part of one, on an encoder.

    Raises:
        ValueError: a size does not fit; the text begins with the argument that does not.
    """
    if options.kind not in BUILDERS:
        raise UserError(f"objective.kind={options.kind}: no builder; expected {', '.join(BUILDERS)}")
    return BUILDERS[options.kind](recipe, options, encoder)


# ---- what must fit together ------------------------------------------------------------------------


def check_parts(recipe: Pretrain) -> None:
    """Checks what the recipe's sections require of each other.

    Raises:
        UserError: naming the key that does not fit.
    """
    options = recipe.objective
    if recipe.groups.negatives is not None and not options.uses_batch_negatives:
        raise UserError(
            f"groups.negatives={recipe.groups.negatives}: objective.kind={options.kind} takes none from the "
            "batch, as a dim objective does; leave that key out"
        )
    if recipe.groups.negatives == "global" and recipe.accumulate > 1:
        raise UserError(
            f"groups.negatives=global with accumulate={recipe.accumulate}: the negatives of a micro-batch "
            "would be its own images alone; set accumulate=1, or a number of images"
        )
    if recipe.encoder.norm == "batch" and recipe.groups.norm < 2:
        raise UserError(
            f"groups.norm={recipe.groups.norm}: a group needs at least 2 images, for encoder.norm=batch "
            "takes statistics over it; 32 or 64 is usual, or set encoder.norm=group"
        )
    if options.reconstructs and not recipe.encoder.decodes:
        raise UserError(
            f"objective.kind={options.kind} with encoder.kind={recipe.encoder.kind}, which has no decoder; "
            f"{recipe.encoder.to_decode}"
        )
    if len(recipe.data.views) != options.views:
        raise UserError(
            f"data.views describes {len(recipe.data.views)} views; objective.kind={options.kind} "
            f"reads {options.views}" + CLEAN * options.clean_view
        )
    if options.clean_view and recipe.data.views[-1] != View():
        view = to_yaml_line(recipe.data.views[-1].model_dump(exclude_defaults=True))
        raise UserError(f"data.views.{options.views - 1}: expected {{}}, got {view}{CLEAN}")
