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
from trainer.evaluation.pixel_diffusion import Images, PixelDiffusion, chosen
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
    pool = context.test.labelled() if supervised else np.arange(len(context.test))
    rows = chosen(pool, options.images, context.seed, NAME)
    test = context.on_main(rows, partial(_there_and_back, context, options, context.test))
    elements = context.test.pixels[0].size
    errors = collectives.run_on_main(lambda: _errors(test["errors"], elements))
    figures = {f"{NAME}/{name}": value for name, value in errors.items()}
    figures |= {f"{NAME}/images": float(len(rows)), f"{NAME}/steps": float(options.steps)}
    line = f"  inversion, {options.steps} steps: " + "  ".join(f"{k} {v:.4g}" for k, v in errors.items())
    if supervised:
        train_rows = chosen(context.train.labelled(), options.train_images, context.seed, FEATURE)
        train = context.on_main(train_rows, partial(_there, context, options, context.train))
        figures |= collectives.run_on_main(
            lambda: context.probe(FEATURE, (train["noise"], train_rows), (test["noise"], rows))
        )
        line += f"  linear of its noise {figures[f'probe/linear/{FEATURE}']:.1%}"
    context.say(line)
    return figures


def _there(
    context: PixelDiffusion, options: Inversion, images: Images, rows: np.ndarray
) -> dict[str, Tensor]:
    """The noise of images, float32 [n, 3·H·W]."""
    return {"noise": _noise(context, options, images, rows).flatten(1).float()}


def _there_and_back(
    context: PixelDiffusion, options: Inversion, images: Images, rows: np.ndarray
) -> dict[str, Tensor]:
    """The noise of images, and the squared errors float64 [n] of what is drawn of it."""
    objective, noise = context.objective, _noise(context, options, images, rows)
    grid = objective.process.grid(options.steps)
    x = euler(objective.process, objective.predict, objective.denoiser(), noise, grid)
    pixels = torch.from_numpy(images.pixels[rows]).to(x.device, torch.float64) / 255
    return {"noise": noise.flatten(1).float(), "errors": squared_errors(context.pixels(x), pixels)}


def _noise(context: PixelDiffusion, options: Inversion, images: Images, rows: np.ndarray) -> Tensor:
    objective = context.objective
    grid, x = objective.process.grid(options.steps), context.standardised(images, rows)
    noise = inverted(objective.process, objective.predict, objective.denoiser(), x, grid)
    if not noise.isfinite().all():
        raise UserError(f"{NAME}: a number is not finite: the denoiser diverged; lower optimizer.lr")
    return noise


def _errors(errors: Tensor, elements: int) -> dict[str, float]:
    """`sse`, `mse` and `psnr` of squared errors of images, float64 [n]."""
    summary = summarised(errors.numpy(), elements)
    return {name: summary[name] for name in ERRORS}
