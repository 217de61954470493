"""A mixture of Gaussians in two dimensions, and the denoiser that nothing can be better than."""

import torch

from trainer.generation.processes import Prediction, Process, normal_quantile
from trainer.generation.samplers import Denoiser

CENTRES = torch.tensor([[-1.2, -0.8], [1.3, -0.4], [0.1, 1.4]], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
CENTRES -= SHARES @ CENTRES  # standardised samples have this mean
SPREAD = 0.25  # standard deviation of each mode


def samples(n: int, seed: int) -> torch.Tensor:
    """n samples [n, 2], float64."""
    generator = torch.Generator().manual_seed(seed)
    modes = torch.multinomial(SHARES, n, replacement=True, generator=generator)
    return CENTRES[modes] + SPREAD * torch.randn(n, 2, dtype=torch.float64, generator=generator)


def even_noise(n: int) -> torch.Tensor:
    """n draws [n, 2] of a standard normal, spread evenly: what is counted of them hardly varies."""
    return normal_quantile(
        torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(n, dtype=torch.float64)
    )


def best(process: Process, predict: Prediction, grid: torch.Tensor) -> Denoiser:
    """The denoiser whose x is the mean of all x that may be behind an x_t, exactly; at a grid's times."""
    times: dict[float, torch.Tensor] = {}
    for t in grid:
        times.setdefault(process.embedded(t[None]).item(), t)

    def denoise(scaled: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        t = times[embedded[0].item()].expand(len(scaled))
        signal, noise = (part[:, None] for part in process.levels(t))
        noisy = scaled / process.scaled(torch.ones_like(scaled), t)
        variance = signal**2 * SPREAD**2 + noise**2
        distance = (noisy[:, None] - signal[:, None] * CENTRES).square().sum(2)
        mode = (SHARES.log() - distance / (2 * variance)).softmax(1)
        shrink = signal * SPREAD**2 / variance
        means = CENTRES + shrink[:, None] * (noisy[:, None] - signal[:, None] * CENTRES)
        x = (mode[:, :, None] * means).sum(1)
        eps = (noisy - signal * x) / noise.clamp(min=1e-12)
        return process.target(predict, x, eps, t)

    return denoise
