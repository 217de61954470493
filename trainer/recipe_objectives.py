"""The recipe's objectives and their critics: one section a kind."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_pipelines.spec import Positive, PositiveFloat, Section, Weight

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


Objective = DimObjective
