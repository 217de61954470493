"""The typed recipe: every key that a recipe file may hold, with its type, unit and default.

A recipe is data. `trainer.recipe.loading` reads one from YAML, the tasks receive it validated and frozen.
Intervals and lengths of training are in images (global count), never in steps or epochs.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field, StringConstraints, field_validator

from data_pipelines.access import Access, check_root
from data_pipelines.common.section import Count, Fraction, Positive, Section
from data_pipelines.views import Normalize, Shuffle, View
from trainer.recipe.encoders import Encoder
from trainer.recipe.evaluation import Evaluate
from trainer.recipe.groups import Groups
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


# ---- what is trained -----------------------------------------------------------------------------


class Constant(Section):
    """The learning rate stays, after a linear warm-up over `warmup` images."""

    kind: Literal["constant"]
    warmup: Count = 0

    def factor(self, images_seen: int, images: int) -> float:
        """What the learning rate is multiplied by, of a run of `images`, warm-up apart."""
        return 1.0


class Cosine(Section):
    """The learning rate falls along a half cosine to `final` times itself, after a linear warm-up."""

    kind: Literal["cosine"]
    warmup: Count = 0
    final: Fraction = 0.0

    def factor(self, images_seen: int, images: int) -> float:
        """What the learning rate is multiplied by, of a run of `images`, warm-up apart."""
        progress = (images_seen - self.warmup) / max(1, images - self.warmup)
        wave = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
        return self.final + (1 - self.final) * wave


# ---- what is kept and logged ---------------------------------------------------------------------


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


class TrainingRecipe(Protocol):
    """What every recipe that trains has: all that trainer, preflight, plan, report and tracking read of it.

    Intervals and lengths are in images.
    """

    task: Any
    seed: int
    precision: Any
    outputs: str
    run: str | None
    batch: int
    accumulate: int
    groups: Groups
    images: int
    objective: Any
    optimizer: Any
    schedule: Any
    save: Save
    log: Log
    evaluate: Evaluate
    tracking: Tracking
    step_timeout: float
    profile: int

    @property
    def key_shuffle(self) -> Shuffle | None: ...

    @property
    def stage_timeout(self) -> float: ...

    def advice(self, images: int | None) -> Iterator[str]: ...

    def folder(self, name: str) -> Path: ...


class Pretrain(Section):
    """Pretraining of an encoder by an objective."""

    trains: ClassVar[bool] = True

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

    def folder(self, name: str) -> Path:
        """The run's folder, for a recipe of this name."""
        return Path(self.outputs) / (self.run or name)

    @property
    def launch_precision(self) -> str:
        """What the ranks are prepared to compute in."""
        return self.precision

    @property
    def stage_timeout(self) -> float:
        """Seconds that a stage of a step may take, also to wait for its data; 0: any time."""
        return self.step_timeout and self.step_timeout + self.data.retry_seconds

    @property
    def key_shuffle(self) -> Shuffle | None:
        """Of which views batch-norm's groups are shuffled; None: of none."""
        return self.objective.key_shuffle(self.groups, self.encoder.norm)

    @property
    def labelled_split(self) -> str:
        """The split that probes learn from."""
        return self.data.labelled or self.data.train

    def advice(self, images: int | None) -> Iterator[str]:
        """What the keys mean together, for a training split of so many images (None: not known)."""
        return self.objective.advice(self.encoder.norm, images)

    def encoder_options(self) -> dict:
        """All that an encoder is built from, as plain values: exported with its weights."""
        return self.encoder.model_dump() | {"size": self.data.size, "group": self.groups.norm}


class EvaluateRun(Section):
    """Evaluation of a run's frozen encoder: `from` is the run's folder, `images` one of its checkpoints.

    What is left at its default in `tracking` is as the run's own recipe says.
    """

    trains: ClassVar[bool] = False

    task: Literal["evaluate"]
    from_: Annotated[str, Field(alias="from")]
    images: Positive | None = None  # null: the newest
    evaluate: Evaluate = Evaluate()
    tracking: Tracking = Tracking()

    def folder(self, name: str) -> Path:
        """The folder of the run that is evaluated."""
        return Path(self.from_)

    @property
    def launch_precision(self) -> str:
        """What the ranks are prepared to compute in; the run's own recipe decides what they do."""
        return "float32"


Recipe = Annotated[Pretrain | EvaluateRun, Field(discriminator="task")]
