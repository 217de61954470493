"""From a recipe to the things it names: encoder and objective."""

import torch
from torch import nn

from data_pipelines.common.errors import UserError
from data_pipelines.views import View
from trainer.networks.build import build_encoder, encoder_options
from trainer.objectives.autoencoder import Autoencoder
from trainer.objectives.dim import Dim
from trainer.objectives.hybrid import Hybrid
from trainer.objectives.moco import Moco
from trainer.recipe.objectives import Contrast, DimObjective, MocoObjective, contrast_key, contrastive
from trainer.recipe.schema import Pretrain
from trainer.recipe.yaml12 import to_yaml_line
from trainer.training.groups import negatives

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
        given = to_yaml_line(recipe.data.views[-1].model_dump(exclude_defaults=True))
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
