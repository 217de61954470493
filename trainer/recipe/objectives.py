"""The recipe's objectives: one section a kind, and what it answers without torch."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_pipelines.common.section import Count, Fraction, Positive, PositiveFloat, Section, Weight, key
from data_pipelines.views import Shuffle
from trainer.recipe.critics import ConcatCritic, CriticOptions, DotCritic
from trainer.recipe.groups import Groups
from trainer.recipe.objective import ObjectiveOptions, Queue

Share = Annotated[float, Field(ge=0, lt=1)]


class Prior(Section):
    """The discriminator of prior matching."""

    units: Annotated[list[Positive], Field(min_length=1, max_length=8)] = key(
        [1000, 200], "widths of its hidden layers", "units"
    )
    penalty: Weight = key(1.0, "weight of half the squared norm of its input gradient", "1")


class Supervised(Section):
    """A classifier on conv features beside the objective: its gradient moves the encoder too."""

    classes: Positive = key(..., "classes that the labels tell apart", "classes")
    weight: PositiveFloat = key(
        1.0, "weight of the cross-entropy, summed over labelled and averaged over all images", "1"
    )
    units: Positive = key(200, "width of the hidden layer", "units")
    dropout: Share = key(0.1, "share of hidden units dropped", "1")


class DimObjective(ObjectiveOptions):
    """Deep InfoMax: alpha · global + beta · local term, and prior matching with weight gamma."""

    kind: Literal["dim"]
    bound: Literal["jsd", "infonce", "dv", "nwj"] = key(
        ...,
        "the bound on information: Jensen-Shannon, InfoNCE, Donsker-Varadhan or Nguyen-Wainwright-Jordan",
    )
    alpha: Weight = key(0.0, "weight of the global term, y against the whole image", "1")
    beta: Weight = key(1.0, "weight of the local term, y against each location", "1")
    gamma: Weight = key(0.0, "weight of prior matching, y against a uniform distribution", "1")
    critic: CriticOptions = key(DotCritic(kind="dot"), "the critic of the local term")
    global_critic: CriticOptions = key(ConcatCritic(kind="concat"), "the critic of the global term")
    prior: Prior = Prior()
    locations: Positive | None = key(
        None, "locations of the map drawn anew for each step; null: all", "locations"
    )
    coordinates: Weight = key(0.0, "weight of the task of telling where on the map a feature was", "1")
    occlusion: Share = key(
        0.0, "side of a square hidden from y, not from the map, as a share of the image's", "1"
    )
    supervised: Supervised | None = None

    @model_validator(mode="after")
    def _learns(self) -> "DimObjective":
        if not self.alpha and not self.beta:
            raise ValueError("alpha and beta are both 0: nothing ties y to the image; raise one of them")
        return self

    @property
    def uses_batch_negatives(self) -> bool:
        return True

    @property
    def supervised_classes(self) -> int | None:
        return self.supervised.classes if self.supervised else None


class Head(Section):
    """The projection of y that is compared."""

    units: Count | None = key(None, "width of the hidden layer; null: that of y; 0: no such layer", "units")
    width: Positive = key(128, "width of what is compared", "numbers")


class MocoObjective(ObjectiveOptions):
    """MoCo-v2; its defaults are the published ones."""

    kind: Literal["moco"]
    temperature: PositiveFloat = key(0.2, "what similarities are divided by", "1")
    momentum: Share = key(0.999, "share of the key encoder that each step keeps", "1")
    final_momentum: Fraction | None = key(
        None,
        "that share at the end of the run, to which it rises along a half cosine; null: it stays `momentum`",
        "1",
    )
    symmetric: bool = key(False, "whether the loss of the views exchanged is added")
    queue: Queue = Queue()
    head: Head = Head()
    shuffle: Annotated[int, Field(ge=2)] = key(
        8,
        "groups of a block, in which key views change places, so that batch-norm gives no positive away",
        "groups",
    )

    @model_validator(mode="after")
    def _rises(self) -> "MocoObjective":
        if self.final_momentum is not None and self.final_momentum < self.momentum:
            raise ValueError(
                f"final_momentum={self.final_momentum:g} is below momentum={self.momentum:g}, from which it "
                "rises; raise it, or leave it out"
            )
        return self

    def momentum_at(self, images_seen: int, images: int) -> float:
        """The momentum of the step that begins after `images_seen` of a run's `images`.

        1 - (1 - m) (cos(pi k / K) + 1) / 2 of BYOL (arXiv 2006.07733, section 3.3), to any end in place of 1.
        """
        if self.final_momentum is None:
            return self.momentum
        wave = (1 + math.cos(math.pi * min(1.0, images_seen / images))) / 2
        return self.final_momentum - (self.final_momentum - self.momentum) * wave

    @property
    def views(self) -> int:
        return 2

    @property
    def directions(self) -> int:
        return 1 + self.symmetric

    @property
    def momentum_queue(self) -> Queue:
        return self.queue

    @property
    def key_width(self) -> int:
        return self.head.width

    def key_shuffle(self, groups: Groups, norm: str) -> Shuffle | None:
        """The second view's, in blocks: keys are made of it (He et al., arXiv 1911.05722, section 3.3)."""
        if norm != "batch":
            return None
        return Shuffle(views=(1,), group=groups.norm, groups=self.shuffle)

    def heldout_batch(self, groups: Groups, batch: int) -> int:
        """Whole groups of up to 256 images, which are each other's negatives there."""
        unit = groups.indivisible_images
        return max(1, min(batch, 256) // unit) * unit

    def advice(self, norm: str, images: int | None) -> Iterator[str]:
        if norm != "batch":
            yield f"key views are not shuffled: encoder.norm={norm} mixes no images"
        if images is not None and self.queue.keys // self.directions >= images:
            yield (
                f"warning: queue.keys={self.queue.keys:,} is not below the {images:,} training images: an "
                "image's own older key is among its negatives"
            )


class SimclrObjective(ObjectiveOptions):
    """SimCLR: NT-Xent between two views of each image, the other images of the batch the negatives.

    `groups.negatives=global` compares all images of all ranks.
    """

    kind: Literal["simclr"]
    temperature: PositiveFloat = key(
        0.5, "what similarities are divided by; 0.5 is the paper's for CIFAR-10", "1"
    )
    head: Head = Head()

    @property
    def views(self) -> int:
        return 2

    @property
    def uses_batch_negatives(self) -> bool:
        return True


NOISE = (
    "the most noise on what the decoder reads in training, drawn for each image from 0 to this, in units of "
    "each channel's spread; 0: none"
)
Contrast = Annotated[DimObjective | MocoObjective | SimclrObjective, Field(discriminator="kind")]


class AutoencoderObjective(ObjectiveOptions):
    """Reconstruction alone, by the squared error."""

    kind: Literal["autoencoder"]
    decoder_noise: Weight = key(0.0, NOISE, "standard deviations")

    @property
    def reconstructs(self) -> bool:
        return True


class HybridObjective(ObjectiveOptions):
    """A contrastive objective on y + omega · the squared error of reconstruction from z = [y, w].

    Give `omega`, or `alpha` and `sigma`, which make it alpha / ((1 - alpha) · 2 sigma²).
    """

    kind: Literal["hybrid"]
    contrast: Contrast = key(..., "the contrastive objective")
    alpha: Annotated[float, Field(gt=0, lt=1)] | None = key(
        None, "weight of reconstruction in the bound, 1 - alpha that of contrast", "1"
    )
    sigma: PositiveFloat | None = key(None, "standard deviation of the decoder's Gaussian; null: 1", "1")
    omega: PositiveFloat | None = key(
        None, "weight of the error, summed over an image's pixels in [0, 1]", "1"
    )
    reconstruct: Literal["view", "clean"] = key(
        "view", "the first view, or a clean one, last of `data.views`"
    )
    detach_y: bool = key(False, "whether the decoder reads y but sends no gradient into it")
    decoder_noise: Weight = key(0.0, NOISE, "standard deviations")

    @model_validator(mode="after")
    def _one_weight(self) -> "HybridObjective":
        if (self.omega is None) == (self.alpha is None):
            raise ValueError("give either omega or alpha (and sigma), one of the two; the other as null")
        if self.omega is not None and self.sigma is not None:
            raise ValueError("sigma belongs to alpha: omega is the weight already; leave one of them out")
        return self

    def weighed(self) -> tuple[float, float, float]:
        """omega, and an alpha and sigma that make it."""
        sigma = self.sigma or 1.0
        if self.omega is not None:
            return self.omega, 2 * self.omega / (1 + 2 * self.omega), sigma
        assert self.alpha is not None  # one of the two is given
        return self.alpha / (1 - self.alpha) / (2 * sigma**2), self.alpha, sigma

    @property
    def views(self) -> int:
        return self.contrast.views + self.clean_view

    @property
    def directions(self) -> int:
        return self.contrast.directions

    @property
    def contrast_key(self) -> str:
        return "objective.contrast."

    @property
    def reconstructs(self) -> bool:
        return True

    @property
    def clean_view(self) -> bool:
        return self.reconstruct == "clean"

    @property
    def uses_batch_negatives(self) -> bool:
        return self.contrast.uses_batch_negatives

    @property
    def momentum_queue(self) -> Queue | None:
        return self.contrast.momentum_queue

    @property
    def key_width(self) -> int:
        return self.contrast.key_width

    @property
    def supervised_classes(self) -> int | None:
        return self.contrast.supervised_classes

    def key_shuffle(self, groups: Groups, norm: str) -> Shuffle | None:
        return self.contrast.key_shuffle(groups, norm)

    def heldout_batch(self, groups: Groups, batch: int) -> int:
        return self.contrast.heldout_batch(groups, batch)

    def advice(self, norm: str, images: int | None) -> Iterator[str]:
        omega, alpha, sigma = self.weighed()
        yield (
            f"loss = contrastive{', both ways,' if self.directions > 1 else ''} + "
            f"{self.directions * omega:g} x squared error of an image (omega {omega:g}; alpha {alpha:g} at "
            f"sigma {sigma:g})"
        )
        yield from self.contrast.advice(norm, images)


Objective = Annotated[
    DimObjective | MocoObjective | SimclrObjective | AutoencoderObjective | HybridObjective,
    Field(discriminator="kind"),
]
