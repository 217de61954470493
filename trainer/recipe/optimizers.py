"""The recipe's optimizers: one section a kind."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_pipelines.common.section import PositiveFloat, Section, Weight, key

Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running mean


class MissingKey(ValueError):
    """None of several alternative keys is set: reported as a missing key is."""


class OptimizerOptions(Section):
    """What every optimizer has."""

    kind: str
    lr: PositiveFloat | None = key(None, "the learning rate; this or `lr_per_256` is required", "1")
    lr_per_256: PositiveFloat | None = key(
        None, "the learning rate for a global batch of 256 images, scaled to the recipe's batch", "1"
    )
    scaling: Literal["linear", "sqrt"] | None = key(
        None, "how `lr_per_256` grows with the batch; null: linearly"
    )
    weight_decay: Weight = key(0.0, "weight decay; in `adamw` decoupled from the gradient", "1")
    decay_norms: bool = key(
        True,
        "false takes weight decay, and LARS's trust ratio, off norms and biases: parameters of one dimension",
    )
    clip: Weight = key(0.0, "the largest norm of the gradient; 0: no clipping", "1")

    @model_validator(mode="after")
    def _one_rate(self) -> "OptimizerOptions":
        if self.lr is None and self.lr_per_256 is None:
            raise MissingKey(
                "no learning rate: expected lr, or lr_per_256 (for a batch of 256), a number above 0"
            )
        if self.lr is not None and self.lr_per_256 is not None:
            raise ValueError(
                f"both lr={self.lr:g} and lr_per_256={self.lr_per_256:g} are given; expected one of them: "
                "set the other to null (optimizer.lr_per_256=null)"
            )
        if self.scaling and self.lr is not None:
            raise ValueError(
                f"scaling={self.scaling} scales lr_per_256, but lr={self.lr:g} is given; "
                "give lr_per_256, or take scaling out (optimizer.scaling=null)"
            )
        return self

    @property
    def slots(self) -> int:
        """The numbers that the optimizer keeps for each one that it trains."""
        return 2

    @property
    def reads_layers(self) -> bool:
        """Whether an update reads a norm of the whole layer: engines must not cut layers apart."""
        return False

    def rate(self, batch: int) -> float:
        """The learning rate for a global batch of so many images, before any schedule.

        Linear: Goyal et al., arXiv 1706.02677. Square root: Krizhevsky, arXiv 1404.5997.
        """
        if self.lr is not None:
            return self.lr
        assert self.lr_per_256 is not None  # one of the two is given
        factor = batch / 256
        return self.lr_per_256 * (factor**0.5 if self.scaling == "sqrt" else factor)

    def describe_rate(self, batch: int) -> str:
        """The learning rate in words, and where it comes from."""
        text = f"learning rate {self.rate(batch):g}"
        if self.lr_per_256 is None:
            return text
        how = "with its square root" if self.scaling == "sqrt" else "linearly"
        return f"{text} = {self.lr_per_256:g} for a batch of 256, scaled {how} to {batch:,}"


class AdamOptions(OptimizerOptions):
    """Adam, or AdamW with its decoupled weight decay."""

    kind: Literal["adam", "adamw"]
    betas: Annotated[list[Decay], Field(min_length=2, max_length=2)] = key(
        [0.9, 0.999], "decays of the running means of the gradient and of its square", "1"
    )
    eps: PositiveFloat = key(1e-8, "what is added to the denominator", "1")


class SgdOptions(OptimizerOptions):
    """Stochastic gradient descent."""

    kind: Literal["sgd"]
    momentum: Decay = key(0.9, "share of the last update that is kept", "1")
    nesterov: bool = key(False, "whether the gradient is looked at ahead along the momentum")

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "SgdOptions":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=true looks ahead along the momentum, which is 0; raise momentum")
        return self

    @property
    def slots(self) -> int:
        return 1 if self.momentum else 0


class LarsOptions(OptimizerOptions):
    """Layer-wise adaptive rates, for large batches; not under DeepSpeed."""

    kind: Literal["lars"]
    momentum: Decay = key(0.9, "share of the last update that is kept", "1")
    trust: PositiveFloat = key(1e-3, "the trust coefficient", "1")

    @property
    def slots(self) -> int:
        return 1

    @property
    def reads_layers(self) -> bool:
        return True


Optimizer = Annotated[AdamOptions | SgdOptions | LarsOptions, Field(discriminator="kind")]
