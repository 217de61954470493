"""Deep InfoMax (Hjelm et al., arXiv 1808.06670): DIM(L), DIM(G), both, and what is trained beside them."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from trainer.distributed import collectives
from trainer.networks.batch_norm import update_running_stats
from trainer.networks.heads import Concat, EncodeAndDot, GlobalEncodeAndDot
from trainer.objectives import bounds
from trainer.objectives.auxiliary import Classifier, Coordinates, occluded
from trainer.objectives.prior import PriorMatching
from trainer.recipe.objectives import ConcatCritic, Critic, DimObjective

Values = dict[str, Tensor | float]


class Dim(nn.Module):
    """Maximises alpha · I(image; y) + beta · mean over locations of I(local feature; y), in bounds of nats.

    Args:
        encoder: gives `local` and `y`.
        options: the recipe's objective.
        norm: "batch" or "group", of the critics' layers.
        group: images that batch-norm statistics are taken over.
        negatives: images that are each other's negatives; None: all images of all ranks.

    Raises:
        ValueError: a group of one image, which has no negative; or negatives over all images with
            batch-norm, whose statistics would tell positives from negatives.
    """

    VIEWS = 1

    def __init__(
        self, encoder: nn.Module, options: DimObjective, norm: str, group: int, negatives: int | None
    ):
        super().__init__()
        check_groups(norm, group, negatives)
        self.options, self.group, self.negatives, self.encoder = options, group, negatives, encoder
        self.conv = next(iter(encoder.widths))  # the first features: those before any fully connected layer
        y, side = encoder.widths["y"], encoder.local_side
        if options.beta:
            self.critic = local_critic(encoder, options, norm, group)
        if options.alpha:
            self.global_critic = global_critic(encoder, options)
        self.denominators = nn.ModuleDict()
        if options.bound == "dv":
            terms = {"local": options.beta, "global": options.alpha}
            self.denominators.update({name: bounds.RunningMean() for name in terms if terms[name]})
        self.prior = PriorMatching(y, options.prior, options.gamma) if options.gamma else None
        self.coordinates = Coordinates(encoder.local_channels, side, y) if options.coordinates else None
        self.classifier = None
        if options.supervised:
            self.classifier = Classifier(encoder.widths[self.conv], options.supervised, norm, group)

    def forward(self, batch, features: dict[str, Tensor] | None = None) -> Values:
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
            found = self.prior(y, self._real(batch, y.shape[1]))
            loss = loss + found.pop("loss")
            values |= found
        if self.coordinates:
            task = self.coordinates(features["local"], y)
            loss = loss + options.coordinates * task
            values["coordinates"] = task.detach()
            values["coordinates/random_guess"] = 2 * math.log(self.encoder.local_side)
        if self.classifier:
            task = self.classifier(features[self.conv], batch.label, self._noise(batch, "dropout"))
            loss = loss + options.supervised.weight * task
            values["supervised"] = task.detach()
        return {"loss": loss, **values}

    def _term(self, name: str, critic: nn.Module, local: Tensor, y: Tensor, values: Values) -> Tensor:
        """The loss of one term, the mean over its groups; its figures go into `values`."""
        losses, information = [], []
        for found in self._pairs(critic, local, y):
            extra = ()
            if name in self.denominators:
                extra = (self.denominators[name](bounds.log_mean(found)),)
            losses.append(bounds.LOSSES[self.options.bound](found, *extra))
            information.append(bounds.information(found))
        loss = torch.stack(losses).mean()
        m = found.count // local.shape[1] + 1
        values[name] = loss.detach()
        values[f"{name}/random_guess"] = bounds.random_guess(self.options.bound, m, local.shape[1])
        values[f"mi/{name}"] = torch.stack(information).mean()
        values[f"mi/{name}/ceiling"] = math.log(m)
        return loss

    def _pairs(self, critic: nn.Module, local: Tensor, y: Tensor) -> Iterator[bounds.Pairs]:
        """The pairs of each group of negatives; of one group where all images of all ranks are negatives.

        An evaluation is one rank's own: there the images of a group of the norm are the negatives.
        """
        bound = self.options.bound
        if self.negatives is None and self.training:
            rank, world = collectives.rank(), collectives.world_size()
            everyone = collectives.all_gather(y)
            found = bounds.pairs_of(critic.scores, local, everyone, critic.cost, -rank * len(y), bound)
            yield bounds.joined(found, rank, world * len(y))
            return
        size = self.negatives or self.group
        for group, rows in zip(local.split(size), y.split(size), strict=True):
            yield bounds.pairs_of(critic.scores, group, rows, critic.cost, 0, bound)

    def _noise(self, batch, purpose: str) -> list[torch.Generator]:
        return batch.noise.groups(purpose, self.group, batch.views[0].device)

    def _dtype(self) -> torch.dtype:
        return next(self.encoder.parameters()).dtype

    def _real(self, batch, width: int) -> Tensor:
        """Points of the prior, uniform on [0, 1]^width, as many as images."""
        drawn = [
            torch.rand(self.group, width, generator=g, device=g.device, dtype=self._dtype())
            for g in self._noise(batch, "prior")
        ]
        return torch.cat(drawn)

    def _locations(self, batch, local: Tensor) -> Tensor:
        """The locations that count this step, [n, L', units]: all, or drawn a group with replacement."""
        if self.options.locations is None:
            return local
        size, device = self.negatives or self.group, local.device
        drawn = []
        for generator, group in zip(
            batch.noise.groups("locations", size, device), local.split(size), strict=True
        ):
            count = (self.options.locations,)
            drawn.append(group[:, torch.randint(local.shape[1], count, generator=generator, device=device)])
        return torch.cat(drawn)

    def after_step(self) -> None:
        """Once an optimizer step: moves the running statistics."""
        update_running_stats(self)
        for denominator in self.denominators.values():
            denominator.update_running_stats()

    def clip_groups(self) -> list[list[nn.Parameter]]:
        """The parameters whose gradients are clipped together: the prior's discriminator for itself."""
        other = list(self.prior.parameters()) if self.prior else []
        apart = {id(parameter) for parameter in other}
        mine = [parameter for parameter in self.parameters() if id(parameter) not in apart]
        return [mine, other] if other else [mine]

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """What evaluation reads, from images [n, 3, H, W]: such as conv, fc and y, each [n, width]."""
        features = self.encoder(images)
        return {name: features[name] for name in self.encoder.widths}


def check_groups(norm: str, group: int, negatives: int | None) -> None:
    """Raises ValueError for groups that cannot work."""
    size = negatives or group  # where all images are negatives, an evaluation compares those of a group
    name = "norm" if size == group else "negatives"
    if size < 2:
        raise ValueError(f"groups.{name}={size}: a group needs at least 2 images; 64 is the paper's")
    if negatives is None and norm == "batch":
        raise ValueError(
            "groups.negatives=global with encoder.norm=batch: statistics of a group would tell its images "
            "from all others; set encoder.norm=group, or a number of images"
        )


def resolved(critic: Critic, bound: str) -> str:
    """The score of a dot critic."""
    return critic.score or ("tanh" if bound in ("dv", "nwj") else "dot")


def local_critic(encoder: nn.Module, options: DimObjective, norm: str, group: int) -> nn.Module:
    critic, y = options.critic, encoder.widths["y"]
    if isinstance(critic, ConcatCritic):
        return Concat(encoder.local_channels, y, critic.units)
    score = resolved(critic, options.bound)
    return EncodeAndDot(encoder.local_channels, y, critic.units, score, norm, group)


def global_critic(encoder: nn.Module, options: DimObjective) -> nn.Module:
    critic, y = options.global_critic, encoder.widths["y"]
    if isinstance(critic, ConcatCritic):
        return Concat(encoder.local_channels * encoder.local_side**2, y, critic.units, whole=True)
    tail, width = encoder.tail()
    return GlobalEncodeAndDot(tail, width, y, critic.units, resolved(critic, options.bound))
