"""The section `evaluate`: the probes of a frozen encoder and the online measures during pretraining."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from data_pipelines.common.section import Count, Positive, PositiveFloat, Section, Weight, key

LR_OF_SCALED = (
    "learning rate at the start, for standardised features over the root of their number: it suits any width"
)


class LinearProbe(Section):
    """Multinomial logistic regression by L-BFGS, to the minimum; results.json says whether it was reached."""

    l2: Weight | Annotated[list[Weight], Field(min_length=1)] | Literal["auto"] = key(
        1e-4,
        "weight of half the squared weights in the mean loss; a list: the one that is best on a tenth of the "
        "training images when the others are fitted; `auto`: of 1e-6, 1e-5, … 1",
        "1",
    )
    iterations: Positive = key(1000, "steps of L-BFGS, at most", "iterations")

    @property
    def candidates(self) -> list[float]:
        """The weights to choose from."""
        if isinstance(self.l2, list):
            return self.l2
        return [10.0**power for power in range(-6, 1)] if self.l2 == "auto" else [self.l2]


class HeadOptions(Section):
    """What the options of every probe that learns by mini-batches answer."""

    fewest_images: ClassVar[int] = 1  # training images that a mini-batch needs

    @property
    def scaled(self) -> bool:
        """Whether features are standardised."""
        return True

    @property
    def averaged(self) -> int:
        """Last epochs after which it is tested; the mean is reported."""
        return 1

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
    standardise: bool = key(True, "whether features are standardised; the paper's are not")
    average: Positive = key(
        1, "last epochs after each of which it is tested; their mean is reported", "epochs"
    )

    fewest_images: ClassVar[int] = 2  # batch-norm takes statistics over them

    @property
    def scaled(self) -> bool:
        return self.standardise

    @property
    def averaged(self) -> int:
        return self.average

    def products(self, classes: int) -> int:
        return self.units


class SgdProbe(HeadOptions):
    """Multinomial logistic regression by mini-batches: SGD, momentum 0.9, a half cosine to zero, no decay."""

    epochs: Positive = key(40, "length of its training", "epochs")
    batch: Positive = key(256, "size of a mini-batch", "images")
    lr: PositiveFloat = key(3.0, LR_OF_SCALED, "1")


class SvmProbe(HeadOptions):
    """Linear SVMs, one class against the rest.

    Each minimises the mean hinge loss + l2/2 · ||w||² of its class on standardised features: to the minimum,
    or, with `iterations: null` or without l2, by the SGD of `linear_sgd` from several initial weights. Then
    mean and spread are reported, and the other keys hold.
    """

    l2: Weight = key(1e-4, "weight of half the squared weights in the mean loss", "1")
    iterations: Positive | None = key(
        2000, "steps of L-BFGS, at most; null: `runs` SVMs by SGD, each of `epochs`", "iterations"
    )
    runs: Positive = key(5, "SVMs by SGD from different initial weights", "SVMs")
    epochs: Positive = key(40, "length of its training by SGD", "epochs")
    batch: Positive = key(256, "size of a mini-batch of SGD", "images")
    lr: PositiveFloat = key(3.0, LR_OF_SCALED, "1")

    @property
    def by_sgd(self) -> bool:
        """Whether mini-batches train it; without l2 there may be no minimum."""
        return self.iterations is None or not self.l2

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
