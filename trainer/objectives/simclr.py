"""SimCLR (Chen et al., arXiv 2002.05709): NT-Xent between two views of each image, over the batch."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipelines.loader import Batch
from trainer.networks.encoder import Encoder, Features
from trainer.networks.heads import projection
from trainer.objectives import bounds
from trainer.objectives.objective import ContrastiveObjective, Values
from trainer.recipe.objectives import SimclrObjective


class Simclr(ContrastiveObjective):
    """The normalised temperature-scaled cross-entropy (NT-Xent; section 2.1, algorithm 1).

    The projection z of each of the 2N views of a batch is compared with the 2N - 1 others: the other view of
    its image is the positive, both views of all other images are negatives. The loss is the mean over all
    views of -log(e^(z·p/t) / (e^(z·p/t) + sum over negatives n of e^(z·n/t))), at unit length, t the
    temperature. That is InfoNCE with two "locations" an image, which are its views.

    Args:
        encoder: its `y` is projected.
        options: the recipe's objective.
        norm: "batch" or "group", of the encoder's layers.
        group: images that batch-norm statistics are taken over.
        negatives: images that are each other's negatives; None: all images of all ranks.

    Raises:
        ValueError: as `bounds.check_groups`.
    """

    views = 2

    def __init__(
        self, encoder: Encoder, options: SimclrObjective, norm: str, group: int, negatives: int | None
    ):
        super().__init__()
        bounds.check_groups(norm, group, negatives)
        self.options, self.group, self.negatives = options, group, negatives
        self.encoder = encoder
        self.head = projection(encoder.widths["y"], options.head.units, options.head.width)

    def forward(self, batch: Batch, features: Features | None = None) -> Values:
        """Takes a batch of two views [n, 3, H, W], n a multiple of both group sizes.

        Args:
            features: the encoder's of the first view, where the caller has them.

        Returns:
            `loss`, to be minimised; `contrast`, the same, with `contrast/random_guess`. In evaluation
            `mi/contrast`, a lower bound in nats, with its `ceiling`.
        """
        first = self._project(self.encoder(batch.views[0]) if features is None else features)
        second = self._project(self.encoder(batch.views[1]))
        losses, information = [], []
        for z, positive in ((first, second), (second, first)):
            for pairs in self._pairs(z, torch.stack([positive, z], dim=1)):
                losses.append(bounds.infonce_loss(pairs.at_location(0)))
                information.append(bounds.information(pairs.at_location(0)))
        loss = torch.stack(losses).mean()
        values: Values = {
            "loss": loss,
            "contrast": loss.detach(),
            "contrast/random_guess": bounds.random_guess("infonce", pairs.images, 2),
        }
        if self.training:
            return values
        return values | {
            "mi/contrast": torch.stack(information).mean(),
            "mi/contrast/ceiling": math.log(pairs.images),
        }

    def features(self, images: Tensor) -> Features:
        """The encoder's, and `head`, the projection [n, width] that the contrast compares."""
        features = super().features(images)
        return features | {"head": self.head(features["y"])}

    def _project(self, features: Features) -> Tensor:
        """z [n, width] at unit length, in the parameters' precision whatever autocast says."""
        return F.normalize(self.head(features["y"]).to(next(self.head.parameters()).dtype), dim=1)

    def _pairs(self, z: Tensor, others: Tensor) -> Iterator[bounds.Pairs]:
        """z [n, width] against the views [n, 2, width] of all images of a group."""
        size = self.negatives if self.training else self.negatives or self.group
        return bounds.reduce_groups(self._scores, others, z, 2, size, "infonce")

    def _scores(self, others: Tensor, z: Tensor) -> Tensor:
        """Views [m, 2, width] and rows [R, width] -> scores [R, m, 2]."""
        with torch.autocast(z.device.type, enabled=False):
            return torch.einsum("iu,jlu->ijl", z, others) / self.options.temperature
