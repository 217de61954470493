"""The noise that a pixel diffusion makes an image of: its own code, as DDIM has it (arXiv 2010.02502, 5.4).

Test images go to noise along the process's differential equation and back by the same number of steps. The
error of the way back is what other models call reconstruction; a linear probe reads the class from the noise.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from data_pipelines.common.errors import UserError
from trainer.distributed import collectives
from trainer.evaluation.features import labelled_ids
from trainer.evaluation.pixel_diffusion import LABEL, PixelDiffusion, chosen
from trainer.evaluation.reconstruction import squared_errors, summarised
from trainer.generation.samplers import euler, inverted
from trainer.recipe.pixel_evaluation import Inversion

NAME = "generation/inversion"
FEATURE = "inverted_noise"
ERRORS = ("sse", "mse", "psnr")  # as `reconstruction.summarised` has them


@torch.no_grad()
def measure(context: PixelDiffusion, options: Inversion) -> dict[str, float]:
    """The errors `generation/inversion/…` and the accuracy `probe/linear/inverted_noise`; collective.

    `generation/inversion/images` and `generation/inversion/steps` say on how many. There is no probe without
    labels, or with `train_images: 0`. Equal on every rank.

    Raises:
        SharedError: on every rank, where a number is not finite.
    """
    context.objective.eval()
    supervised = context.supervised and options.train_images > 0
    pool = labelled_ids(context.test) if supervised else np.arange(context.test.images)
    ids = chosen(pool, options.images, context.seed, NAME)
    test = context.on_main(context.test, ids, partial(_there_and_back, context, options))
    elements = 3 * context.images.size**2
    errors = collectives.run_on_main(lambda: _errors(test["errors"], elements))
    figures = {f"{NAME}/{name}": value for name, value in errors.items()}
    figures |= {f"{NAME}/images": float(len(ids)), f"{NAME}/steps": float(options.steps)}
    line = f"  inversion, {options.steps} steps: " + "  ".join(f"{k} {v:.4g}" for k, v in errors.items())
    if supervised:
        train_ids = chosen(labelled_ids(context.train), options.train_images, context.seed, FEATURE)
        train = context.on_main(context.train, train_ids, partial(_there, context, options))
        figures |= collectives.run_on_main(
            lambda: context.probe(FEATURE, *((split["noise"], split[LABEL]) for split in (train, test)))
        )
        line += f"  linear of its noise {figures[f'probe/linear/{FEATURE}']:.1%}"
    context.say(line)
    return figures


def _there(context: PixelDiffusion, options: Inversion, views: Tensor, ids: np.ndarray) -> dict[str, Tensor]:
    """The noise of images, float32 [n, 3·H·W]."""
    return {"noise": _noise(context, options, views).flatten(1).float()}


def _there_and_back(
    context: PixelDiffusion, options: Inversion, views: Tensor, ids: np.ndarray
) -> dict[str, Tensor]:
    """The noise of images, and the squared errors float64 [n] of what is drawn of it."""
    objective, noise = context.objective, _noise(context, options, views)
    grid = objective.process.grid(options.steps)
    x = euler(objective.process, objective.predict, objective.denoiser(), noise, grid)
    outputs = context.pixels(objective.scaling.inverse(x))
    return {"noise": noise.flatten(1).float(), "errors": squared_errors(outputs, context.pixels(views))}


def _noise(context: PixelDiffusion, options: Inversion, views: Tensor) -> Tensor:
    """The noise of normalised images, like them.

    Raises:
        UserError: a number is not finite.
    """
    objective = context.objective
    grid, x = objective.process.grid(options.steps), objective.scaling(views)
    noise = inverted(objective.process, objective.predict, objective.denoiser(), x, grid)
    if not noise.isfinite().all():
        raise UserError(f"{NAME}: a number is not finite: the denoiser diverged; lower optimizer.lr")
    return noise


def _errors(errors: Tensor, elements: int) -> dict[str, float]:
    """`sse`, `mse` and `psnr` of squared errors of images, float64 [n]."""
    summary = summarised(errors.numpy(), elements)
    return {name: summary[name] for name in ERRORS}
