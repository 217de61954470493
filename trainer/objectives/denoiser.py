"""Diffusion as an objective: a network predicts what noise has done to a sample, at any time of a process."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from data_pipelines.loader import Batch
from trainer.distributed.ema import ema_update_
from trainer.generation.processes import Prediction, Process
from trainer.generation.samplers import Denoiser
from trainer.generation.scaling import Scaling
from trainer.networks.dropout import GroupDropout, keyed
from trainer.objectives.objective import Objective, Values, size
from trainer.recipe.diffusion import PAIR


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
        scaling: makes samples standardised.
        averaging: of the weights.
        batch: global batch in images.
        drop: share of the samples whose condition is dropped in training.
        conditional: whether a batch's second view is a condition [n, numbers], standardised.
        purpose: names the random draws; two parts of one run draw apart.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        predict: Prediction,
        scaling: Scaling,
        averaging: Averaging,
        batch: int,
        *,
        drop: float = 0.0,
        conditional: bool = False,
        purpose: str = "diffusion",
    ):
        super().__init__()
        self.process, self.predict, self.averaging = process, predict, averaging
        self.drop, self.batch, self.purpose = drop, batch, purpose
        self.network = network
        self.average = copy.deepcopy(network).requires_grad_(False).eval()
        self.scaling = scaling
        self.views = 1 + conditional
        self.seen = 0

    def forward(self, batch: Batch) -> Values:
        """Takes a batch of samples [n, ...], and of their conditions [n, numbers] where there are some."""
        x = self.scaling(batch.views[0])
        condition = batch.views[1] if self.views == 2 else None
        generators = batch.noise.groups(self.purpose, PAIR, x.device)
        eps, u, kept = self._draws(generators, x)
        t = self.process.times(u)
        noisy = self.process.noisy(x, eps, t)
        with keyed(self.network, generators):
            output = self.network(self.process.scaled(noisy, t), self.process.embedded(t), condition, kept)
        target = self.process.target(self.predict, x, eps, t)
        error = output - target
        self.seen = batch.images_seen
        loss = error.square().flatten(1).sum(1).mean()
        # A network that says 0, the mean of every target of standardised samples, has the error `zero`.
        zero = target.detach().square().mean()
        return {"loss": loss, "denoising": loss.detach() / x[0].numel(), "denoising/zero": zero}

    def _draws(self, generators: Sequence[torch.Generator], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noise like x, uniform numbers [n] in antithetic pairs, and which samples keep their condition."""
        eps, u, kept = [], [], []
        for generator in generators:
            first = torch.rand(1, generator=generator, device=x.device, dtype=torch.float64)
            u += [first, 1 - first]
            kept.append(torch.rand(PAIR, generator=generator, device=x.device) >= self.drop)
            eps.append(torch.randn(PAIR, *x.shape[1:], generator=generator, device=x.device, dtype=x.dtype))
        return torch.cat(eps), torch.cat(u), torch.cat(kept)

    def train(self, mode: bool = True) -> "Diffusion":
        """As `Module.train`; the average drops nothing in either mode, since samples are drawn with it."""
        super().train(mode)
        self.average.eval()
        return self

    def after_step(self) -> None:
        """Moves the average too."""
        super().after_step()
        momentum = self.averaging.momentum(self.batch, self.seen)
        ema_update_(list(self.average.parameters()), list(self.network.parameters()), momentum)

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        """The network, unless it has dropout: a compiler knows no generators, which draw its masks."""
        if not any(isinstance(layer, GroupDropout) and layer.p for layer in self.network.modules()):
            yield f"denoiser of {self.purpose.removeprefix('diffusion').strip() or 'x'}", self.network

    def sizes(self) -> dict[str, int]:
        return {"parameters": size(self.network)}

    def denoiser(self, condition: Tensor | None = None) -> Denoiser:
        """The average as a function of noisy samples and times; `condition` [n, numbers] standardised."""
        return lambda noisy, t: self.average(noisy, t, condition)


class PooledDiffusion(Objective):
    """A vector y, and a map w given y: two denoisers that learn side by side (RCG, arXiv 2312.03701).

    Args:
        y: of vectors.
        w: of maps, conditional on standardised y.
    """

    views = 2

    def __init__(self, y: Diffusion, w: Diffusion):
        super().__init__()
        self.y, self.w = y, w

    def forward(self, batch: Batch) -> Values:
        """Takes a batch of y [n, numbers] and w [n, C, H, W]; the loss is the sum of both."""
        y, w = batch.views
        of_y = self.y(replace(batch, views=[y]))
        of_w = self.w(replace(batch, views=[w, self.y.scaling(y)]))
        return {
            "loss": of_y["loss"] + of_w["loss"],
            "denoising/y": of_y["denoising"],
            "denoising/y/zero": of_y["denoising/zero"],
            "denoising/w": of_w["denoising"],
            "denoising/w/zero": of_w["denoising/zero"],
        }

    def after_step(self) -> None:
        self.y.after_step()
        self.w.after_step()

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        yield from self.y.networks()
        yield from self.w.networks()

    def clip_groups(self) -> list[list[nn.Parameter]]:
        """Each denoiser by itself: neither's gradient shortens the other's."""
        return [*self.y.clip_groups(), *self.w.clip_groups()]

    def sizes(self) -> dict[str, int]:
        y, w = self.y.sizes()["parameters"], self.w.sizes()["parameters"]
        return {"parameters": y + w, "parameters of y": y, "parameters of w": w}
