"""The typed recipe: every key that a recipe file may hold, with its type, unit and default.

A recipe is data. `recipe_loading` reads one from YAML, the tasks receive it validated and frozen.
Intervals and lengths of training are in images (global count), never in steps or epochs.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from data_pipelines.access import Access, check_root
from data_pipelines.common.section import Count, Fraction, Positive, Section
from data_pipelines.views import Normalize, View
from trainer.recipe.encoders import Encoder
from trainer.recipe.evaluation import Evaluate
from trainer.recipe.objectives import Objective
from trainer.recipe.optimizers import Optimizer

Name = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+=-]*$", max_length=100),
    Field(description="a name of at most 100 letters, digits and _ . + = -, the first a letter or digit"),
]


# ---- data ----------------------------------------------------------------------------------------


class Data(Section):
    """Where images come from and what becomes of them.

    `root` is a folder or an address (`data_pipelines.access`). What lies elsewhere comes into the folder
    `cache` (null: below the user's cache folder), at most `cache_bytes` of it at a time.
    """

    root: str
    source: Literal["digits", "cifar10", "cifar100", "stl10", "folder", "wds"]
    train: str = "train"  # several splits: train+unlabelled
    labelled: str | None = None  # what probes learn from; null: the same
    test: str = "test"
    size: Annotated[int, Field(ge=1, le=16_384)] = 32  # pixels of a side
    views: Annotated[list[View], Field(min_length=1)] = [View()]
    normalize: Normalize = Normalize()
    decode: Literal["exact", "fast"] = "exact"  # fast: of JPEGs only what the views show
    window: Positive = 16
    threads: Positive = 2
    prefetch: Positive = 2
    retry_seconds: Annotated[float, Field(ge=0)] = 60.0  # seconds for which a read that fails is tried again
    cache: str | None = None
    cache_bytes: Positive = 50_000_000_000

    @field_validator("root")
    @classmethod
    def _is_an_address(cls, root: str) -> str:
        return check_root(root)

    def access(self, commands: bool) -> Access:
        """How the data set is read; `commands`: whether the user allowed that its root starts programs."""
        return Access(self.retry_seconds, self.cache, self.cache_bytes, commands)


class Groups(Section):
    """Sizes, in images, of the groups of consecutive positions that statistics are taken over.

    `negatives` (null: as `norm`) are each other's negatives; `global`: all images of the batch, of all ranks.
    """

    norm: Positive
    negatives: Positive | Literal["global"] | None = None


# ---- what is trained -----------------------------------------------------------------------------


class Constant(Section):
    """The learning rate stays, after a linear warm-up over `warmup` images."""

    kind: Literal["constant"]
    warmup: Count = 0


class Cosine(Section):
    """The learning rate falls along a half cosine to `final` times itself, after a linear warm-up."""

    kind: Literal["cosine"]
    warmup: Count = 0
    final: Fraction = 0.0


# ---- what is kept and told -----------------------------------------------------------------------


class Save(Section):
    """A checkpoint every so many images; the newest `keep` stay, and of each `keep_every` the first."""

    every: Positive
    keep: Positive = 2
    keep_every: Count = 0  # 0: none but the newest


class Log(Section):
    """Metrics every so many images."""

    every: Positive


NO_SECRETS = (  # a recipe is saved, shown and shared
    "an address with a user or password (@), a query (?) or a # is refused; leave them out, and export "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
)


class Tracking(Section):
    """MLflow. `uri: null` is the SQLite file of `outputs`; `none` keeps the journal only."""

    uri: str | None = None
    experiment: Annotated[str, StringConstraints(min_length=1)] = "hybrid-infomax"

    @field_validator("uri")
    @classmethod
    def _holds_no_secret(cls, uri: str | None) -> str | None:
        if uri and set("@?#") & set(uri) and not uri.startswith("sqlite:"):
            raise ValueError(NO_SECRETS)
        return uri


# ---- the recipes ---------------------------------------------------------------------------------


class Pretrain(Section):
    """Pretraining of an encoder by an objective."""

    task: Literal["pretrain"]
    seed: Count = 0
    precision: Literal["float64", "float32", "bf16"] = "float32"
    outputs: str = "outputs"
    run: Name | None = None
    batch: Positive
    accumulate: Positive = 1
    groups: Groups
    images: Positive
    data: Data
    encoder: Encoder
    objective: Objective
    optimizer: Optimizer
    schedule: Annotated[Constant | Cosine, Field(discriminator="kind")] = Constant(kind="constant")
    save: Save
    log: Log
    evaluate: Evaluate = Evaluate()
    tracking: Tracking = Tracking()
    step_timeout: Annotated[float, Field(ge=0)] = (
        600  # seconds, and data.retry_seconds more, for a stage of a step, also to fetch its data; 0: any
    )
    profile: Count = 0  # steps that torch's profiler records, after ten others, to profile.json


class EvaluateRun(Section):
    """Evaluation of a run's frozen encoder: `from` is the run's folder, `images` one of its checkpoints.

    What is left at its default in `tracking` is as the run's own recipe says.
    """

    task: Literal["evaluate"]
    from_: Annotated[str, Field(alias="from")]
    images: Positive | None = None  # null: the newest
    evaluate: Evaluate = Evaluate()
    tracking: Tracking = Tracking()


Recipe = Annotated[Pretrain | EvaluateRun, Field(discriminator="task")]
