"""Matching the representation to a prior: an adversarial game with one optimizer and one backward pass."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from trainer.objectives.bounds import softplus
from trainer.recipe.objectives import Prior


class Discriminator(nn.Module):
    """y -> ReLU layers -> a logit: is it from the prior? No norm; its input gradient in closed form."""

    def __init__(self, inputs: int, units: list[int]):
        super().__init__()
        widths = [inputs, *units, 1]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Points u [n, d] -> logits t [n] and dt/du [n, d].

        The gradient is a product of weights and of the ReLUs' zeros and ones, so a penalty on it needs no
        second pass of automatic differentiation, which engines that shard parameters do not survive.
        """
        hidden, open_ = u, []
        layers = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        for layer in layers[:-1]:
            before = layer(hidden)
            open_.append((before > 0).to(before.dtype))
            hidden = before * open_[-1]
        t = layers[-1](hidden).squeeze(1)
        gradient = layers[-1].weight.expand(len(u), -1)
        for layer, mask in zip(layers[-2::-1], open_[::-1], strict=True):
            gradient = (gradient * mask) @ layer.weight
        return t, gradient


class PriorMatching(nn.Module):
    """Draws sigma(y) towards the uniform distribution on [0, 1]^d (arXiv 1808.06670, section 3.3).

    The discriminator learns on detached points, with a penalty on the squared norm of its gradient at real
    and fake ones (Roth et al., arXiv 1705.09367; Mescheder et al., arXiv 1801.04406). The encoder is moved by
    a surrogate that is linear in sigma(y), with exactly the gradient of gamma · mean softplus(-t), the
    non-saturating loss. So one sum, one backward pass and one optimizer are the simultaneous step of two.
    """

    def __init__(self, y: int, options: Prior, gamma: float):
        super().__init__()
        self.gamma, self.penalty = gamma, options.penalty
        self.discriminator = Discriminator(y, options.units)

    def forward(self, y: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Representations y [n, d] before the sigmoid and points `real` [n, d] of the prior.

        Returns:
            `loss`, whose gradient moves encoder and discriminator. Without gradient: `prior`, the loss of the
            encoder, gamma · mean softplus(-t), `prior/discriminator` and the `prior/penalty` within it.
        """
        with torch.autocast(y.device.type, enabled=False):
            u = torch.sigmoid(y.to(real.dtype))
            fake, slope = self.discriminator(u.detach())
            t, real_slope = self.discriminator(real)
            penalty = self.penalty * 0.5 * (squares(slope) + squares(real_slope))
            game = softplus(fake).mean() + softplus(-t).mean() + penalty
            pull = (-self.gamma * torch.sigmoid(-fake)[:, None] * slope).detach()
            surrogate = (pull * u).sum(1).mean()
        return {
            # the surrogate has the gradient, not the value: that is the encoder's loss
            "loss": game + surrogate - surrogate.detach(),
            "prior": self.gamma * softplus(-fake.detach()).mean(),
            "prior/discriminator": game.detach(),
            "prior/penalty": penalty.detach(),
        }


def squares(slope: Tensor) -> Tensor:
    """The mean over points of the squared norm."""
    return slope.square().sum(1).mean()
