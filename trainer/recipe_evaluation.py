"""What a recipe asks to be measured: the probes of a frozen encoder and the online monitor."""

from typing import Annotated

from pydantic import Field

from data_pipelines.spec import Count, Positive, PositiveFloat, Section, Weight


class MlpProbe(Section):
    """The paper's probe: Linear -> units, dropout, batch-norm, ReLU, Linear; Adam on cached features."""

    units: Positive = 200
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    epochs: Positive = 40
    batch: Positive = 256
    lr: PositiveFloat = 1e-3


class LinearProbe(Section):
    """Multinomial logistic regression by L-BFGS; `l2` weighs half the squared weights in the mean loss."""

    l2: Weight = 1e-4
    iterations: Positive = 100


class FewShot(Section):
    """A linear probe with `shots` labelled images a class, the mean of `draws` fixed draws."""

    shots: Positive = 5
    draws: Positive = 10


class Evaluate(Section):
    """What is measured: the online kNN during pretraining, and the probes of the frozen encoder."""

    every: Count = 0
    online_images: Positive = 5000
    at_end: bool = True
    knn: Positive = 200
    linear: LinearProbe | None = LinearProbe()
    mlp: MlpProbe | None = MlpProbe()
    few_shot: FewShot | None = FewShot()
    controls: bool = True
    recalibrate: bool = False
    batch: Positive = 500
