"""From noise to samples, and back: solvers of the ordinary differential equation that a process has.

A denoiser is any function (x_t as `Process.scaled` makes it [n, ...], embedded times [n]) -> output [n, ...].
Each sampler calls `see` with the number of a step and the x [n, ...] that is predicted where it begins: the
steps of a sample, for a picture.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from trainer.generation.processes import Continuous, Ddim, Prediction, Process

Denoiser = Callable[[Tensor, Tensor], Tensor]
See = Callable[[int, Tensor], object]


def unseen(step: int, x: Tensor) -> None:
    """Nobody looks at the steps."""


def predicted(
    process: Process, predict: Prediction, denoiser: Denoiser, noisy: Tensor, time: Tensor
) -> tuple[Tensor, Tensor]:
    """x and eps of x_t [n, ...] at one time, as the denoiser predicts them, each [n, ...]."""
    t = time.to(noisy.device).expand(len(noisy))
    output = denoiser(process.scaled(noisy, t), process.embedded(t))
    return process.parts(predict, output.to(noisy.dtype), noisy, t)


def euler(
    process: Process,
    predict: Prediction,
    denoiser: Denoiser,
    noise: Tensor,
    grid: Tensor,
    see: See = unseen,
) -> Tensor:
    """The noise [n, ...] of a standard normal -> samples, in one evaluation a step of the grid of times.

    Along a line from x to eps, Euler's step goes to where that line is at the next time: of `ddim` it is the
    deterministic step of DDIM (arXiv 2010.02502, equation 12, eta = 0).
    """
    noisy = process.prior * noise
    for step, (now, then) in enumerate(itertools.pairwise(grid)):
        x, eps = predicted(process, predict, denoiser, noisy, now)
        see(step, x)
        noisy = moved(process, x, eps, then)
    return noisy


def moved(process: Process, x: Tensor, eps: Tensor, time: Tensor) -> Tensor:
    """Where the line from x to eps, both [n, ...], is at one time."""
    return process.noisy(x, eps, time.to(x.device).expand(len(x)))


def ancestral(
    process: Ddim,
    predict: Prediction,
    denoiser: Denoiser,
    noise: Tensor,
    grid: Tensor,
    eta: float,
    fresh: Callable[[int], Tensor],
    see: See = unseen,
) -> Tensor:
    """DDIM's step with noise (arXiv 2010.02502, equations 12 and 16).

    Args:
        eta: share of the noise that DDPM's posterior has; 0 is `euler`.
        fresh: the number of a step -> noise of a standard normal [n, ...].
    """
    noisy = noise
    for step, (now, then) in enumerate(itertools.pairwise(grid)):
        x, eps = predicted(process, predict, denoiser, noisy, now)
        see(step, x)
        (signal, spread), (signal_then, spread_then) = (process.levels(t[None]) for t in (now, then))
        added = eta * spread_then / spread * (1 - (signal / signal_then) ** 2).sqrt()
        kept = (spread_then**2 - added**2).clamp(min=0).sqrt()
        noisy = signal_then.item() * x + kept.item() * eps + added.item() * fresh(step)
    return noisy


def heun(
    process: Continuous,
    predict: Prediction,
    denoiser: Denoiser,
    noise: Tensor,
    grid: Tensor,
    see: See = unseen,
) -> Tensor:
    """As `euler`, of second order: two evaluations a step, the last has one (arXiv 2206.00364, alg. 1)."""
    noisy = process.prior * noise
    for step, (now, then) in enumerate(itertools.pairwise(grid)):
        x, eps = predicted(process, predict, denoiser, noisy, now)
        see(step, x)
        width, first = (then - now).item(), process.slope(x, eps)
        tried = noisy + width * first
        if then == grid[-1]:
            noisy = tried
        else:
            second = process.slope(*predicted(process, predict, denoiser, tried, then))
            noisy = noisy + width * (first + second) / 2
    return noisy


def inverted(
    process: Process, predict: Prediction, denoiser: Denoiser, samples: Tensor, grid: Tensor
) -> Tensor:
    """Samples [n, ...] -> the noise that `euler` makes them of, on the same grid, up to the steps' errors.

    A predicted x says nothing of the noise of a clean sample, so such a denoiser reads the sample at the
    first time that has noise.
    """
    noisy, backwards = samples, grid.flip(0)
    for step, (now, then) in enumerate(itertools.pairwise(backwards)):
        at = then if predict == "x" and not step else now
        noisy = moved(process, *predicted(process, predict, denoiser, noisy, at), then)
    return noisy / process.prior


def guided(conditional: Denoiser, unconditional: Denoiser, guidance: float) -> Denoiser:
    """Classifier-free guidance (arXiv 2207.12598): 1 is the conditional denoiser, 0 the unconditional one."""

    def denoise(noisy: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(unconditional(noisy, t), conditional(noisy, t), guidance)

    return denoise
