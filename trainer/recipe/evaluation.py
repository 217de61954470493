"""What a recipe asks to be measured: the probes of a frozen encoder and the online monitor."""

from typing import Annotated, ClassVar

from pydantic import Field

from data_pipelines.common.section import Count, Positive, PositiveFloat, Section, Weight


class LinearProbe(Section):
    """Multinomial logistic regression by L-BFGS; `l2` weighs half the squared weights in the mean loss."""

    l2: Weight = 1e-4
    iterations: Positive = 100


class HeadOptions(Section):
    """What the options of every probe that learns by mini-batches answer."""

    fewest_images: ClassVar[int] = 1  # training images that a mini-batch needs

    def products(self, classes: int) -> int:
        """Columns of the head's first matrix product."""
        return classes


class MlpProbe(HeadOptions):
    """The paper's probe: Linear -> units, dropout, batch-norm, ReLU, Linear; Adam on cached features.

    The learning rate falls to zero along a half cosine; with `milestones`, to a tenth after each of these
    epochs.
    """

    units: Positive = 200
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    epochs: Positive = 40
    batch: Positive = 256
    lr: PositiveFloat = 1e-3
    milestones: Annotated[list[Positive], Field(min_length=1)] | None = None

    fewest_images: ClassVar[int] = 2  # batch-norm takes statistics over them

    def products(self, classes: int) -> int:
        return self.units


class SgdProbe(HeadOptions):
    """Multinomial logistic regression by mini-batches: SGD, momentum 0.9, a half cosine to zero, no decay.

    `lr` is that of standardised features divided by the root of their number: one value for any width.
    """

    epochs: Positive = 40
    batch: Positive = 256
    lr: PositiveFloat = 3.0


class SvmProbe(HeadOptions):
    """`runs` linear SVMs from different initial weights: one against the rest, hinge loss, mini-batches.

    Each minimises, for each class, the mean hinge loss + l2/2 · ||w||² on standardised features, by SGD as
    the linear probe does. Mean and standard deviation over the runs are reported.
    """

    runs: Positive = 5
    l2: Weight = 1e-4
    epochs: Positive = 40
    batch: Positive = 256
    lr: PositiveFloat = 3.0

    def products(self, classes: int) -> int:
        return classes * self.runs


class FewShot(Section):
    """A linear probe with `shots` labelled images a class, the mean of `draws` fixed draws."""

    shots: Positive = 5
    draws: Positive = 10


class Evaluate(Section):
    """What is measured: the online kNN during pretraining, and the probes of the frozen encoder.

    `threads` are those of one piece of work, such as the heads of one feature; a rank does as many pieces at
    a time as it has cores for. A sum's last bit depends on its threads, and an accuracy's last digit on that:
    so they are named here, and figures depend on neither cores nor ranks.

    `controls` are the same on the untrained network and, up to 64 px, on raw pixels.
    """

    every: Count = 0
    online_images: Positive = 5000
    at_end: bool = True
    knn: Positive = 200
    linear: LinearProbe | None = LinearProbe()
    linear_sgd: SgdProbe | None = None
    mlp: MlpProbe | None = MlpProbe()
    svm: SvmProbe | None = None
    few_shot: FewShot | None = FewShot()
    controls: bool = True
    recalibrate: bool = False
    batch: Positive = 500
    threads: Positive = 1
