"""What an objective is: the contract between objectives, the trainer and evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor, nn

from data_pipelines.loader import Batch
from trainer.networks.batch_norm import update_running_stats
from trainer.networks.encoder import Encoder, Features
from trainer.objectives.codec import Codec

Values = dict[str, Tensor | float]


class Objective(nn.Module, ABC):
    """A module from a batch to named scalars, with everything that is trained or kept for that.

    The trainer calls `forward`, runs the backward pass and the optimizer's step, then `after_step`. It knows
    nothing else of an objective. Other ranks are reached through `distributed.collectives` alone.

    Attributes:
        views: how many views of a batch `forward` reads; the last may be a clean one.
        directions: how many bounds `loss` is the sum of; a hybrid weighs the reconstruction by it.
    """

    views: int = 1
    directions: int = 1

    @abstractmethod
    def forward(self, batch: Batch) -> Values:
        """Scalars by name, means over this rank's part of the batch; `loss` among them is minimised.

        Other tensors carry no gradient. While training `mi/…` are in-sample: lower bounds in expectation are
        those on images that were not trained on. In evaluation mode the names that begin with `mi/` are
        estimates in nats on images that were not trained on, computed by one rank.
        """

    def after_step(self) -> None:
        """Once an optimizer step, on every rank: moves the running statistics of batch-norm.

        An objective with more state (a momentum encoder, a queue) extends this.
        """
        update_running_stats(self)

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        """What `compile` compiles: networks that `forward` calls as a whole, with a name each."""
        yield from ()

    def clip_groups(self) -> list[list[nn.Parameter]]:
        """The parameters whose gradients are clipped by one common norm, a list a group; all that learn."""
        return [[parameter for parameter in self.parameters() if parameter.requires_grad]]

    def sizes(self) -> dict[str, int]:
        """Numbers of parameters that a run is described by, before any engine shards them."""
        return {"parameters": size(self)}


Trained = TypeVar("Trained", bound=Objective)


class EncoderObjective(Objective):
    """An objective that an encoder learns by.

    Attributes:
        encoder: what is exported and evaluated.
    """

    encoder: Encoder

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        yield "encoder", self.encoder

    def sizes(self) -> dict[str, int]:
        latent = self.encoder.latent_size
        sizes = super().sizes() | {"encoder parameters": size(self.encoder)}
        return sizes if latent is None else sizes | {"latent size": latent}

    def features(self, images: Tensor) -> Features:
        """What evaluation reads, from images [n, 3, H, W]: each feature of `encoder.widths` as [n, width].

        An objective with a projection head adds its output, `head`, which a kNN reads and no probe: the head
        is trained away with the run and is not exported.
        """
        features = self.encoder(images)
        return {name: features[name] for name in self.encoder.widths}

    @property
    def codec(self) -> Codec | None:
        """Images to latents and back, where the objective has a decoder."""
        return None


def size(module: nn.Module) -> int:
    """The number of parameters of a module that is not sharded."""
    return sum(parameter.numel() for parameter in module.parameters())


class ContrastiveObjective(EncoderObjective):
    """An objective on y, which a hybrid may combine with reconstruction."""

    @abstractmethod
    def forward(self, batch: Batch, features: Features | None = None) -> Values:
        """As `Objective.forward`.

        Args:
            features: the encoder's of the first view, where the caller has them already.
        """
