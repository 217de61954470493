"""The section `evaluate`: the probes of a frozen encoder and the online measures during pretraining."""

from typing import Annotated, ClassVar

from pydantic import Field

from data_pipelines.common.section import Count, Positive, PositiveFloat, Section, Weight, key

LR_OF_SCALED = (
    "learning rate at the start, for standardised features over the root of their number: it suits any width"
)


class LinearProbe(Section):
    """Multinomial logistic regression by L-BFGS."""

    l2: Weight = key(1e-4, "weight of half the squared weights in the mean loss", "1")
    iterations: Positive = key(100, "steps of L-BFGS, at most", "iterations")


class HeadOptions(Section):
    """What the options of every probe that learns by mini-batches answer."""

    fewest_images: ClassVar[int] = 1  # training images that a mini-batch needs

    def products(self, classes: int) -> int:
        """Columns of the head's first matrix product."""
        return classes


class MlpProbe(HeadOptions):
    """The Deep InfoMax paper's probe: Linear, dropout, batch-norm, ReLU, Linear; Adam on cached features."""

    units: Positive = key(200, "width of the hidden layer", "units")
    dropout: Annotated[float, Field(ge=0, lt=1)] = key(0.1, "share of hidden units dropped", "1")
    epochs: Positive = key(40, "length of its training", "epochs")
    batch: Positive = key(256, "size of a mini-batch", "images")
    lr: PositiveFloat = key(1e-3, "Adam's learning rate at the start", "1")
    milestones: Annotated[list[Positive], Field(min_length=1)] | None = key(
        None,
        "the learning rate falls to a tenth after each of them; null: to zero along a half cosine",
        "epochs",
    )

    fewest_images: ClassVar[int] = 2  # batch-norm takes statistics over them

    def products(self, classes: int) -> int:
        return self.units


class SgdProbe(HeadOptions):
    """Multinomial logistic regression by mini-batches: SGD, momentum 0.9, a half cosine to zero, no decay."""

    epochs: Positive = key(40, "length of its training", "epochs")
    batch: Positive = key(256, "size of a mini-batch", "images")
    lr: PositiveFloat = key(3.0, LR_OF_SCALED, "1")


class SvmProbe(HeadOptions):
    """Linear SVMs, one class against the rest, by the SGD of `linear_sgd`; mean and spread are reported.

    Each minimises the mean hinge loss + l2/2 · ||w||² of each class on standardised features.
    """

    runs: Positive = key(5, "SVMs from different initial weights", "SVMs")
    l2: Weight = key(1e-4, "weight of half the squared weights in the mean loss", "1")
    epochs: Positive = key(40, "length of its training", "epochs")
    batch: Positive = key(256, "size of a mini-batch", "images")
    lr: PositiveFloat = key(3.0, LR_OF_SCALED, "1")

    def products(self, classes: int) -> int:
        return classes * self.runs


class FewShot(Section):
    """A linear probe of y with few labelled images."""

    shots: Positive = key(5, "labelled images of each class", "images")
    draws: Positive = key(10, "fixed draws of them that the mean is taken over", "draws")


class Evaluate(Section):
    """Measures of the encoder: a few online, during pretraining, and probes of the frozen one at its end.

    A rank runs as many jobs at a time, such as the heads of one feature, as it has cores for. The last bit of
    a sum depends on the threads of a job, so they are fixed: results depend on neither cores nor ranks.
    """

    every: Count = key(0, "images from one online measurement to the next; 0: none", "images")
    online_images: Positive = key(5000, "images of each split that online measures use", "images")
    at_end: bool = key(True, "whether the frozen encoder is probed when training is done")
    knn: Positive = key(200, "neighbours that vote, weighed by their similarity", "neighbours")
    linear: LinearProbe | None = LinearProbe()
    linear_sgd: SgdProbe | None = None
    mlp: MlpProbe | None = MlpProbe()
    svm: SvmProbe | None = None
    few_shot: FewShot | None = FewShot()
    controls: bool = key(True, "whether the untrained network and, up to 64 px, raw pixels are probed too")
    recalibrate: bool = key(False, "whether batch-norm is re-estimated on training images before the probes")
    batch: Positive = key(500, "images that are encoded at a time", "images")
    threads: Positive = key(1, "threads of one job", "threads")
