"""Three ways from a sample to noise, all of them straight lines: x_t = signal(t) x + noise(t) eps.

A network sees `scaled(x_t)` and `embedded(t)`, and predicts eps, x or v, a mixture of both; each follows from
each. What a process does not say (losses, solvers, guidance) is the same for all three.

Time runs from data to noise. Samples x have unit variance in each dimension.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["eps", "x", "v"]
SMALLEST = 1e-3  # what a predicted part is divided by at least: there the other part is all of x_t


class Process(ABC):
    """A line from samples to noise. All times are tensors [n], of any process's own unit.

    Attributes:
        name: in recipes.
        prior: standard deviation of x_t where sampling begins.
    """

    name: str
    prior: float = 1.0

    @abstractmethod
    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise of x_t, each [n]."""

    @abstractmethod
    def velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The parts [n] of eps and of -x in v = A eps - B x."""

    @abstractmethod
    def times(self, u: Tensor) -> Tensor:
        """Uniform numbers u [n] in [0, 1) -> times of training; 1 - u gives the antithetic ones."""

    @abstractmethod
    def grid(self, steps: int) -> Tensor:
        """The times of sampling in about so many steps, from noise to the clean sample, float64."""

    def embedded(self, t: Tensor) -> Tensor:
        """The time as a network sees it: over a range of about 1,000, as DDPM's embedding expects."""
        return t

    def scaled(self, noisy: Tensor, t: Tensor) -> Tensor:
        """x_t as a network sees it."""
        return noisy

    # ---- the same for all --------------------------------------------------------------------------

    def noisy(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t of samples x and noise eps, both [n, ...]."""
        signal, noise = (like(part, x) for part in self.levels(t))
        return signal * x + noise * eps

    def target(self, predict: Prediction, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What a network that predicts eps, x or v should say of x_t, [n, ...]."""
        if predict == "v":
            of_eps, of_x = (like(part, x) for part in self.velocity(t))
            return of_eps * eps - of_x * x
        return eps if predict == "eps" else x

    def parts(self, predict: Prediction, output: Tensor, noisy: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """A network's output on x_t -> x and eps as predicted, each [n, ...]."""
        signal, noise = (like(part, noisy) for part in self.levels(t))
        if predict == "eps":
            return (noisy - noise * output) / signal.clamp(min=SMALLEST), output
        if predict == "x":
            return output, (noisy - signal * output) / noise.clamp(min=SMALLEST)
        of_eps, of_x = (like(part, noisy) for part in self.velocity(t))
        scale = of_eps * signal + of_x * noise
        return (of_eps * noisy - noise * output) / scale, (of_x * noisy + signal * output) / scale


class Ddim(Process):
    """DDPM's chain of T = 1,000 steps with a linear beta (arXiv 2006.11239), sampled as DDIM (2010.02502).

    Times are whole numbers: -1 is the clean sample, T - 1 noise.
    """

    name = "ddim"
    T = 1000

    def __init__(self) -> None:
        beta = torch.linspace(1e-4, 2e-2, self.T, dtype=torch.float64)
        self.signals = torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(0)])

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.signals.device != t.device:  # once: a copy at each step would make the host wait
            self.signals = self.signals.to(t.device)
        squared = self.signals[t.long() + 1]
        return squared.sqrt(), (1 - squared).sqrt()

    def velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.levels(t)  # progressive distillation's v (arXiv 2202.00512)

    def times(self, u: Tensor) -> Tensor:
        return (u.double() * self.T).clamp(max=self.T - 1).floor()

    def grid(self, steps: int) -> Tensor:
        """D2C's sequence (arXiv 2106.06819): 0, skip, 2 skip, …, and T - 1, backwards."""
        upwards = [-1, *range(0, self.T - 1, max(1, self.T // steps)), self.T - 1]
        return torch.tensor(upwards[::-1], dtype=torch.float64)

    def embedded(self, t: Tensor) -> Tensor:
        return t.clamp(min=0)  # no network was trained on clean samples: inversion begins with time 0's


class Continuous(Process):
    """A process whose time is a real number, so that solvers of higher order apply."""

    @abstractmethod
    def slope(self, x: Tensor, eps: Tensor) -> Tensor:
        """The derivative of x_t by t, of samples x and noise eps, both [n, ...]."""


class Flow(Continuous):
    """The straight path of flow matching (arXiv 2210.02747, 2209.03003); v is eps - x.

    Times lie in [0, 1]; in training they are logit-normal (arXiv 2403.03206).
    """

    name = "flow"

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.ones_like(t)

    def times(self, u: Tensor) -> Tensor:
        return torch.sigmoid(normal_quantile(u))

    def grid(self, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def embedded(self, t: Tensor) -> Tensor:
        return 1000 * t

    def slope(self, x: Tensor, eps: Tensor) -> Tensor:
        return eps - x


class Edm(Continuous):
    """Noise is added and the signal stays (arXiv 2206.00364), with the paper's sigma_data = 1; t is sigma.

    With predict=v a network is EDM's preconditioned one: its output is -F, and the plain squared error of v
    is the loss that the paper weighs.
    """

    name = "edm"
    MEAN, STD = -1.2, 1.2  # of log sigma in training
    LOW, HIGH, RHO = 0.002, 80.0, 7  # of sampling
    prior = HIGH

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t

    def velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        spread = (1 + t * t).sqrt()
        return 1 / spread, t / spread

    def times(self, u: Tensor) -> Tensor:
        return (self.MEAN + self.STD * normal_quantile(u)).exp()

    def grid(self, steps: int) -> Tensor:
        high, low = self.HIGH ** (1 / self.RHO), self.LOW ** (1 / self.RHO)
        sigmas = torch.linspace(high, low, steps, dtype=torch.float64) ** self.RHO
        return torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])

    def embedded(self, t: Tensor) -> Tensor:
        return 250 * t.clamp(min=self.LOW).log()  # the paper's log(sigma) / 4, in thousandths

    def scaled(self, noisy: Tensor, t: Tensor) -> Tensor:
        return noisy / like((1 + t * t).sqrt(), noisy)

    def slope(self, x: Tensor, eps: Tensor) -> Tensor:
        return eps


PROCESSES: dict[str, type[Process]] = {kind.name: kind for kind in (Ddim, Flow, Edm)}


def like(part: Tensor, x: Tensor) -> Tensor:
    """Numbers [n] of samples x [n, ...], to be multiplied with them, in their precision."""
    return part.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))


def normal_quantile(u: Tensor) -> Tensor:
    """Uniform numbers -> those of a standard normal, within 8 standard deviations, float64."""
    tail = 0.5 * math.erfc(8 / math.sqrt(2))
    return torch.special.ndtri(u.double().clamp(tail, 1 - 2**-53))
