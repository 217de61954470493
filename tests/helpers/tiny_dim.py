"""A Deep InfoMax of some hundred parameters in float64, and batches for it."""

import numpy as np
import torch

from data_pipelines.loader import Batch
from data_pipelines.noise import Noise
from trainer.networks.dim_encoder import DimEncoder
from trainer.objectives.dim import Dim
from trainer.recipe.objectives import DimObjective, DotCritic

GROUP = 4
BOUNDS = ("jsd", "infonce", "dv", "nwj")


def dot_critic(score: str = "dot") -> DotCritic:
    return DotCritic(kind="dot", units=6, score=score)


def tiny(bound="jsd", group=GROUP, negatives=GROUP, seed=0, norm="batch", **options) -> Dim:
    """A network of some hundred parameters in float64."""
    torch.manual_seed(seed)
    encoder = DimEncoder(size=8, channels=[3, 4], fc=5, y=3, group=group, norm=norm)
    settings = {"critic": dot_critic(), **options}
    objective = DimObjective(kind="dim", bound=bound, **settings)
    return Dim(encoder, objective, norm, group, negatives).double()


def batch_of(images: torch.Tensor, seen: int = 0, first: int = 0, seed: int = 0) -> Batch:
    n = len(images)
    positions = np.arange(first, first + n)[None]
    labels = torch.zeros(n, dtype=torch.int64)
    return Batch([images], positions, seen + positions, labels, seen, Noise(seed, seen, first, n))


def images(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 8, 8, generator=generator, dtype=torch.float64)


def gradients(objective: Dim) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in objective.parameters()])


def follows_differences(objective: Dim, batch: Batch) -> None:
    """Asserts that the gradient of the loss equals finite differences, in every parameter."""
    objective(batch)["loss"].backward()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in objective.named_parameters():
        # Along a random direction; where a ReLU turns over within the step, a smaller step is taken.
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        wanted = (parameter.grad * direction).sum().item()
        slopes = []
        for step in (1e-5, 1e-6):
            ends = []
            for sign in (step, -2 * step):
                with torch.no_grad():
                    parameter += sign * direction
                    ends.append(objective(batch)["loss"].item())
            with torch.no_grad():
                parameter += step * direction
            slopes.append((ends[0] - ends[1]) / (2 * step))
        assert min(abs(f - wanted) for f in slopes) <= 1e-6 * max(1.0, abs(wanted)), name
