"""Deep InfoMax (Hjelm et al., arXiv 1808.06670): DIM(L), DIM(G), both, and what is trained beside them."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from data_pipelines.loader import Batch
from data_pipelines.pinned import on_device
from trainer.networks.build import build_global_critic, build_local_critic
from trainer.networks.encoder import Encoder, Features
from trainer.networks.heads import Critic
from trainer.objectives import bounds
from trainer.objectives.auxiliary import Classifier, Coordinates, occluded
from trainer.objectives.objective import ContrastiveObjective, Values
from trainer.objectives.prior import PriorMatching
from trainer.recipe.objectives import DimObjective


class Dim(ContrastiveObjective):
    """Maximises alpha · I(image; y) + beta · mean over locations of I(local feature; y), in bounds of nats.

    Args:
        encoder: its `local` map and `y` are compared.
        options: the recipe's objective.
        norm: "batch" or "group", of the critics' layers.
        group: images that batch-norm statistics are taken over.
        negatives: images that are each other's negatives; None: all images of all ranks.

    Raises:
        ValueError: a group of one image, which has no negative; or negatives over all images with
            batch-norm, whose statistics would separate positives from negatives.
    """

    def __init__(self, encoder: Encoder, options: DimObjective, norm: str, group: int, negatives: int | None):
        super().__init__()
        bounds.check_groups(norm, group, negatives)
        self.options, self.group, self.negatives, self.encoder = options, group, negatives, encoder
        self.conv = next(iter(encoder.widths))  # the first features: those before any fully connected layer
        y, side = encoder.widths["y"], encoder.local_side
        if options.beta:
            self.critic = build_local_critic(options.critic, options.bound, encoder, norm, group)
        if options.alpha:
            self.global_critic = build_global_critic(options.global_critic, options.bound, encoder)
        self.denominators = nn.ModuleDict()
        if options.bound == "dv":
            terms = {"local": options.beta, "global": options.alpha}
            self.denominators.update({name: bounds.RunningMean() for name in terms if terms[name]})
        self.prior = PriorMatching(y, options.prior, options.gamma) if options.gamma else None
        self.coordinates = Coordinates(encoder.local_channels, side, y) if options.coordinates else None
        self.classifier = None
        if options.supervised:
            self.classifier = Classifier(encoder.widths[self.conv], options.supervised, norm, group)

    def forward(self, batch: Batch, features: Features | None = None) -> Values:
        """Takes a `Batch` of one view [n, 3, H, W], n a multiple of both group sizes.

        Args:
            features: the encoder's of that view, where the caller has them.

        Returns:
            `loss`, to be minimised. For each term `local` and `global` its own loss, under `…/random_guess`
            that of a critic that knows nothing; `mi/…`, a lower bound in nats, and beside it its `ceiling`.
            `prior` is the encoder's loss in prior matching, `coordinates` and `supervised` their tasks'.
        """
        options, images = self.options, batch.views[0]
        features = self.encoder(images) if features is None else features
        y = features["y"]
        if options.occlusion:
            y = self.encoder(occluded(images, options.occlusion, self._noise(batch, "occlusion")))["y"]
        values: Values = {}
        loss = torch.zeros((), dtype=self._dtype(), device=images.device)
        if options.beta:
            local, encoded = self.critic(features["local"], y)
            loss = loss + options.beta * self._term(
                "local", self.critic, self._locations(batch, local), encoded, values
            )
        if options.alpha:
            whole, encoded = self.global_critic(features["local"], y)
            loss = loss + options.alpha * self._term("global", self.global_critic, whole, encoded, values)
        if self.prior:
            matching = self.prior(y, self._real(batch, y.shape[1]))
            loss = loss + matching.pop("loss")
            values |= matching
        if self.coordinates:
            task = self.coordinates(features["local"], y)
            loss = loss + options.coordinates * task
            values["coordinates"] = task.detach()
            values["coordinates/random_guess"] = 2 * math.log(self.encoder.local_side)
        if self.classifier and options.supervised:
            label = on_device(batch.label, images.device)
            task = self.classifier(features[self.conv], label, self._noise(batch, "dropout"))
            loss = loss + options.supervised.weight * task
            values["supervised"] = task.detach()
        return {"loss": loss, **values}

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        yield from super().networks()
        if self.options.beta:
            yield "critic", self.critic
        if self.options.alpha:
            yield "global critic", self.global_critic

    def _term(self, name: str, critic: Critic, local: Tensor, y: Tensor, values: Values) -> Tensor:
        """The loss of one term, the mean over its groups; its figures go into `values`."""
        losses, information = [], []
        for pairs in self._pairs(critic, local, y):
            extra: tuple[Tensor, ...] = ()
            if name in self.denominators:
                extra = (self.denominators[name](bounds.log_mean(pairs)),)
            losses.append(bounds.LOSSES[self.options.bound](pairs, *extra))
            information.append(bounds.information(pairs))
        loss = torch.stack(losses).mean()
        m = pairs.images
        values[name] = loss.detach()
        values[f"{name}/random_guess"] = bounds.random_guess(self.options.bound, m, local.shape[1])
        values[f"mi/{name}"] = torch.stack(information).mean()
        values[f"mi/{name}/ceiling"] = math.log(m)
        return loss

    def _pairs(self, critic: Critic, local: Tensor, y: Tensor) -> Iterator[bounds.Pairs]:
        """The pairs of each group of negatives.

        An evaluation is computed by one rank: there the images of a group of the norm are the negatives.
        """
        size = self.negatives if self.training else self.negatives or self.group
        return bounds.reduce_groups(critic.scores, local, y, critic.cost, size, self.options.bound)

    def _noise(self, batch: Batch, purpose: str) -> list[torch.Generator]:
        return batch.noise.groups(purpose, self.group, batch.views[0].device)

    def _dtype(self) -> torch.dtype:
        return next(self.encoder.parameters()).dtype

    def _real(self, batch: Batch, width: int) -> Tensor:
        """Points of the prior, uniform on [0, 1]^width, as many as images."""
        samples = [
            torch.rand(self.group, width, generator=g, device=g.device, dtype=self._dtype())
            for g in self._noise(batch, "prior")
        ]
        return torch.cat(samples)

    def _locations(self, batch: Batch, local: Tensor) -> Tensor:
        """The locations that count this step, [n, L', units]: all, or drawn a group with replacement."""
        if self.options.locations is None:
            return local
        size, device = self.negatives or self.group, local.device
        samples = []
        for generator, group in zip(
            batch.noise.groups("locations", size, device), local.split(size), strict=True
        ):
            count = (self.options.locations,)
            samples.append(group[:, torch.randint(local.shape[1], count, generator=generator, device=device)])
        return torch.cat(samples)

    def after_step(self) -> None:
        """Moves the running means of the Donsker-Varadhan bound too."""
        super().after_step()
        for denominator in self.denominators.values():
            assert isinstance(denominator, bounds.RunningMean)
            denominator.update()

    def clip_groups(self) -> list[list[nn.Parameter]]:
        """All parameters, but those of the prior's discriminator in a group of their own."""
        if self.prior is None:
            return super().clip_groups()
        adversary = list(self.prior.parameters())
        apart = {id(parameter) for parameter in adversary}
        return [[p for p in self.parameters() if id(p) not in apart], adversary]
