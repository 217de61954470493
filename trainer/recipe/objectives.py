"""The recipe's objectives and their critics: one section a kind."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_pipelines.common.section import Count, Positive, PositiveFloat, Section, Weight

Share = Annotated[float, Field(ge=0, lt=1)]
Score = Literal["dot", "scaled", "tanh"]


class DotCritic(Section):
    """Both sides are encoded to `units`, a score is their dot product.

    `score`: `dot` as published, `scaled` by 1/sqrt(units), `tanh`: 20 tanh(scaled / 20). Null is `dot` for
    jsd and infonce, and `tanh` for dv and nwj, whose exponentials overflow on plain dot products.
    """

    kind: Literal["dot"]
    units: Positive = 2048
    score: Score | None = None


class ConcatCritic(Section):
    """Feature and y are concatenated and go through two hidden layers of `units` (the paper's other one)."""

    kind: Literal["concat"]
    units: Positive = 512


Critic = Annotated[DotCritic | ConcatCritic, Field(discriminator="kind")]


class Prior(Section):
    """The discriminator of prior matching; `penalty` weighs half the squared norm of its input gradient."""

    units: Annotated[list[Positive], Field(min_length=1, max_length=8)] = [1000, 200]
    penalty: Weight = 1.0


class Supervised(Section):
    """A classifier on conv features beside the objective: its gradient moves the encoder too."""

    classes: Positive
    weight: PositiveFloat = 1.0  # of the cross-entropy, summed over labelled and averaged over all images
    units: Positive = 200
    dropout: Share = 0.1


class DimObjective(Section):
    """Deep InfoMax: alpha · global + beta · local term, and prior matching with weight gamma.

    `locations` of the map drawn a step (null: all). `coordinates` weighs the task of telling where on the map
    a feature was; `occlusion` hides a square of that share of the image's side from y, not from the map.
    """

    kind: Literal["dim"]
    bound: Literal["jsd", "infonce", "dv", "nwj"]
    alpha: Weight = 0.0
    beta: Weight = 1.0
    gamma: Weight = 0.0
    critic: Critic = DotCritic(kind="dot")
    global_critic: Critic = ConcatCritic(kind="concat")
    prior: Prior = Prior()
    locations: Positive | None = None
    coordinates: Weight = 0.0
    occlusion: Share = 0.0
    supervised: Supervised | None = None

    @model_validator(mode="after")
    def _learns(self):
        if not self.alpha and not self.beta:
            raise ValueError("alpha and beta are both 0: nothing ties y to the image; raise one of them")
        return self


class Queue(Section):
    """The keys that negatives are: `keys` in all, `start`ing as random unit vectors or with none.

    `bf16` halves their memory.
    """

    keys: Positive = 65536
    start: Literal["random", "empty"] = "random"
    bf16: bool = False


class Head(Section):
    """The projection of y to `width` numbers, a hidden layer of `units` between (null: as y; 0: none)."""

    units: Count | None = None
    width: Positive = 128


class MocoObjective(Section):
    """MoCo-v2; its defaults are the published ones. `momentum` is that of the key encoder, each step.

    With batch-norm key views change places within blocks of `shuffle` groups, so that statistics do not give
    positives away.
    """

    kind: Literal["moco"]
    temperature: PositiveFloat = 0.2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.999
    symmetric: bool = False
    queue: Queue = Queue()
    head: Head = Head()
    shuffle: Annotated[int, Field(ge=2)] = 8


Contrast = Annotated[DimObjective | MocoObjective, Field(discriminator="kind")]


class AutoencoderObjective(Section):
    """Reconstruction alone, by the squared error."""

    kind: Literal["autoencoder"]


class HybridObjective(Section):
    """A contrastive objective on y + omega · the squared error of reconstruction from z = [y, w].

    Give `omega`, or `alpha` in (0, 1) and the Gaussian's `sigma` (null: 1), which make it
    alpha / ((1 - alpha) · 2 sigma²). `reconstruct` the first view, or a `clean` one, the last of data.views.
    With `detach_y` the decoder reads y but sends no gradient into it.
    """

    kind: Literal["hybrid"]
    contrast: Contrast
    alpha: Annotated[float, Field(gt=0, lt=1)] | None = None
    sigma: PositiveFloat | None = None
    omega: PositiveFloat | None = None
    reconstruct: Literal["view", "clean"] = "view"
    detach_y: bool = False

    @model_validator(mode="after")
    def _one_weight(self):
        if (self.omega is None) == (self.alpha is None):
            raise ValueError("give either omega or alpha (and sigma), one of the two; the other as null")
        if self.omega is not None and self.sigma is not None:
            raise ValueError("sigma belongs to alpha: omega is the weight already; leave one of them out")
        return self

    def weighed(self) -> tuple[float, float, float]:
        """omega, and an alpha and sigma that make it."""
        sigma = self.sigma or 1.0
        if self.omega is None:
            return self.alpha / (1 - self.alpha) / (2 * sigma**2), self.alpha, sigma
        return self.omega, 2 * self.omega / (1 + 2 * self.omega), sigma


Objective = Annotated[
    DimObjective | MocoObjective | AutoencoderObjective | HybridObjective, Field(discriminator="kind")
]


def contrastive(objective) -> DimObjective | MocoObjective | None:
    """The contrastive part of an objective; None where it has none."""
    if isinstance(objective, HybridObjective):
        return objective.contrast
    return None if isinstance(objective, AutoencoderObjective) else objective


def contrast_key(objective) -> str:
    """Where in a recipe the keys of the contrastive part stand, for messages."""
    return "objective.contrast." if isinstance(objective, HybridObjective) else "objective."
