"""The section `evaluate`: the probes of a frozen encoder and the online measures during pretraining."""

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
    """The Deep InfoMax paper's probe: Linear, dropout, batch-norm, ReLU, Linear; Adam on cached features.

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

    `lr` is the rate for standardised features that are divided by the square root of their number: one value
    suits any width.
    """

    epochs: Positive = 40
    batch: Positive = 256
    lr: PositiveFloat = 3.0


class SvmProbe(HeadOptions):
    """`runs` linear SVMs from different initial weights: one against the rest, hinge loss, mini-batches.

    Each minimises the mean hinge loss + l2/2 · ||w||² of each class on standardised features, by the SGD of
    `linear_sgd`. Mean and standard deviation over the runs are reported.
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
    """Online measures every `every` images (0: none), and probes of the frozen encoder `at_end`.

    `threads` is the number of threads of one job, such as the heads of one feature; a rank runs as many jobs
    at a time as it has cores for. The last bit of a sum depends on the threads, so they are fixed here:
    results depend on neither cores nor ranks.

    `controls` repeats the measures on the untrained network and, up to 64 px, on raw pixels. `online_images`
    is the number of images of the online measures, `knn` the number of neighbours.
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
