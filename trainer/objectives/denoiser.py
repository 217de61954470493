"""Diffusion as an objective: a network predicts what noise has done to a sample, at any time of a process."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_pipelines.loader import Batch
from trainer.distributed.ema import ema_update_
from trainer.generation.processes import Prediction, Process
from trainer.generation.samplers import Denoiser
from trainer.objectives.objective import Objective, Values, size

PAIR = 2  # images that share a generator, and have antithetic times


@dataclass(frozen=True)
class Averaging:
    """The moving average of the weights that samples are drawn with.

    half_life: images after which a weight's part has halved. ramp: the half-life is at most this share of the
    images seen, so that the first weights are forgotten (arXiv 2206.00364, appendix F.2).
    """

    half_life: float
    ramp: float = 0.05

    def momentum(self, batch: int, images_seen: int) -> float:
        """m of the step that begins after so many images."""
        half_life = min(self.half_life, self.ramp * images_seen) if self.ramp else self.half_life
        return 0.5 ** (batch / half_life) if half_life else 0.0


class Diffusion(Objective):
    """A denoiser of standardised samples, and its average.

    The loss is E |f(x_t, t) - target|^2, summed over a sample's numbers, of what the network predicts: with
    `eps` DDPM's simple loss (arXiv 2006.11239, equation 14), with `v` that of flow matching and of EDM.

    Args:
        network: (noisy [n, ...], times [n], condition, conditioned) -> prediction [n, ...].
        process: the line from samples to noise.
        predict: what the network says.
        mean: of the samples, broadcast over them.
        std: of the samples, likewise.
        averaging: of the weights.
        batch: global batch in images.
        drop: share of the samples whose condition is dropped in training.
        condition_mean: of the condition [numbers]; None: a batch has samples alone.
        condition_std: likewise.
    """

    mean: Tensor
    std: Tensor
    condition_mean: Tensor | None
    condition_std: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        predict: Prediction,
        mean: Tensor,
        std: Tensor,
        averaging: Averaging,
        batch: int,
        drop: float = 0.1,
        condition_mean: Tensor | None = None,
        condition_std: Tensor | None = None,
    ):
        super().__init__()
        self.process, self.predict, self.averaging, self.drop = process, predict, averaging, drop
        self.batch = batch
        self.network = network
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("condition_mean", condition_mean)
        self.register_buffer("condition_std", condition_std)
        self.views = 1 if condition_mean is None else 2
        self.seen = 0

    def forward(self, batch: Batch) -> Values:
        """Takes a batch of samples [n, ...], and of their conditions [n, numbers] where there are some."""
        x = self.standardised(batch.views[0])
        condition = self.standardised_condition(batch.views[1]) if self.views == 2 else None
        eps, u, kept = self._draws(batch, x)
        t = self.process.times(u)
        noisy = self.process.noisy(x, eps, t)
        output = self.network(self.process.scaled(noisy, t), self.process.embedded(t), condition, kept)
        error = output - self.process.target(self.predict, x, eps, t)
        self.seen = batch.images_seen
        loss = error.square().flatten(1).sum(1).mean()
        return {"loss": loss, "denoising": loss.detach() / x[0].numel()}

    def _draws(self, batch: Batch, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noise like x, uniform numbers [n] in antithetic pairs, and which samples keep their condition."""
        eps, u, kept = [], [], []
        for generator in batch.noise.groups("diffusion", PAIR, x.device):
            first = torch.rand(1, generator=generator, device=x.device, dtype=torch.float64)
            u += [first, 1 - first]
            kept.append(torch.rand(PAIR, generator=generator, device=x.device) >= self.drop)
            eps.append(torch.randn(PAIR, *x.shape[1:], generator=generator, device=x.device, dtype=x.dtype))
        return torch.cat(eps), torch.cat(u), torch.cat(kept)

    def after_step(self) -> None:
        """Moves the average too."""
        super().after_step()
        momentum = self.averaging.momentum(self.batch, self.seen)
        ema_update_(list(self.average.parameters()), list(self.network.parameters()), momentum)

    def sizes(self) -> dict[str, int]:
        return {"parameters": size(self.network)}

    # ---- sampling ------------------------------------------------------------------------------------

    def standardised(self, samples: Tensor) -> Tensor:
        """Samples [n, ...] with mean 0 and variance 1."""
        return (samples - self.mean) / self.std

    def restored(self, x: Tensor) -> Tensor:
        """The way back from `standardised`."""
        return x * self.std + self.mean

    def standardised_condition(self, condition: Tensor) -> Tensor:
        """Conditions [n, numbers] likewise."""
        assert self.condition_mean is not None  # there are conditions
        assert self.condition_std is not None
        return (condition - self.condition_mean) / self.condition_std

    def denoiser(self, condition: Tensor | None = None) -> Denoiser:
        """The average as a function of noisy samples and times; `condition` [n, numbers] standardised."""
        return lambda noisy, t: self.average(noisy, t, condition)
