"""Deep InfoMax (Hjelm et al., arXiv 1808.06670): the local objective, DIM(L)."""

import math

import torch
from torch import Tensor, nn

from trainer.networks.batch_norm import commit
from trainer.networks.dim_encoder import DimEncoder
from trainer.networks.heads import EncodeAndDot
from trainer.objectives import bounds
from trainer.recipe_objectives import DimObjective

LOSSES = {"jsd": bounds.jsd_loss, "infonce": bounds.infonce_loss}


class Dim(nn.Module):
    """Maximises the information between y and the local features of the same image.

    Args:
        encoder: gives `local` and `y`.
        options: the recipe's objective.
        group: images that batch-norm statistics are taken over.
        negatives: images that are each other's negatives.

    Raises:
        ValueError: a group of one image, which has neither a variance nor a negative.
    """

    VIEWS = 1

    def __init__(self, encoder: DimEncoder, options: DimObjective, group: int, negatives: int):
        super().__init__()
        if min(group, negatives) < 2:
            name, size = ("norm", group) if group < 2 else ("negatives", negatives)
            raise ValueError(f"groups.{name}={size}: a group needs at least 2 images; 64 is the paper's")
        self.options, self.negatives = options, negatives
        self.encoder = encoder
        self.critic = EncodeAndDot(
            encoder.local_channels,
            encoder.widths["y"],
            options.critic.units,
            options.critic.score,
            group,
        )

    def forward(self, batch) -> dict[str, Tensor | float]:
        """Takes a `Batch` of one view [n, 3, H, W], n a multiple of both group sizes.

        Returns:
            `loss`, to be minimised; `local`, the bound's own loss; `mi/local`, a lower bound in nats and
            beside it its `ceiling`; and the `local/random_guess` of a critic that knows nothing.
        """
        features = self.encoder(batch.views[0])
        local, y = self.critic(features["local"], features["y"])
        picked = self._locations(batch, local)
        losses, information = [], []
        for number, group in enumerate(picked.split(self.negatives)):
            start = number * self.negatives
            scores = self.critic.scores(group, y[start : start + self.negatives])
            losses.append(LOSSES[self.options.bound](scores))
            information.append(bounds.information(scores.detach()))
        loss = torch.stack(losses).mean()
        return {
            "loss": self.options.beta * loss,
            "local": loss.detach(),
            "local/random_guess": bounds.random_guess(self.options.bound, self.negatives, picked.shape[1]),
            "mi/local": torch.stack(information).mean(),
            "mi/local/ceiling": math.log(self.negatives),
        }

    def _locations(self, batch, local: Tensor) -> Tensor:
        """The locations that count this step, [n, L', units]: all, or drawn a group with replacement."""
        if self.options.locations is None:
            return local
        groups = batch.noise.groups("locations", self.negatives, local.device)
        drawn = []
        for generator, group in zip(groups, local.split(self.negatives), strict=True):
            size = (self.options.locations,)
            drawn.append(
                group[:, torch.randint(local.shape[1], size, generator=generator, device=local.device)]
            )
        return torch.cat(drawn)

    def after_step(self) -> None:
        """Once an optimizer step: moves the running statistics."""
        commit(self)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """What evaluation reads, from images [n, 3, H, W]: conv, fc and y, each [n, width]."""
        features = self.encoder(images)
        return {name: features[name] for name in self.encoder.widths}
