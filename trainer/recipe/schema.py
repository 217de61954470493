"""The typed recipe: every key that a recipe file may hold, with its type, unit and default.

A recipe is data. `trainer.recipe.loading` reads one from YAML, the tasks receive it validated and frozen.
Intervals and lengths of training are in images (global count), never in steps or epochs.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, StringConstraints, field_validator

from data_pipelines.access import Access, check_root, local_folder
from data_pipelines.common.home import expand_home
from data_pipelines.common.section import Count, Fraction, Positive, Section, Wording, key
from data_pipelines.views import Normalize, Shuffle, View
from trainer.recipe.encoders import Encoder
from trainer.recipe.evaluation import Evaluate
from trainer.recipe.groups import Groups
from trainer.recipe.objectives import Objective
from trainer.recipe.optimizers import Optimizer

Name = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+=-]*$", max_length=100),
    Wording("a name of at most 100 letters, digits and _ . + = -, the first a letter or digit"),
]

Folder = Annotated[str, AfterValidator(expand_home)]
SQLITE = "sqlite:///"


def expand_root(root: str) -> str:
    """A root with the home folder for `~`, as in ~/x and file:~/x. Raises ValueError: no such user."""
    scheme = "file:" if root.startswith("file:~") else ""
    return scheme + expand_home(root.removeprefix(scheme)) if local_folder(root) else root


# ---- data ----------------------------------------------------------------------------------------


RESIDENT = (
    "whether the training images, of one size, are decoded once and kept in memory, that of each rank's "
    "device; views differ by rounding. `auto`: where they fill at most a quarter of it and that is faster"
)


class Data(Section):
    """Where images come from and what becomes of them."""

    root: str = key(..., "a folder, `file:`, `https://`, `s3://` or `pipe:COMMAND` where the data set lies")
    source: Literal["digits", "cifar10", "cifar100", "stl10", "folder", "wds"] = key(
        ..., "what the data set was made from"
    )
    make: bool = key(
        True,
        "whether a run makes a missing data set by itself: `digits`, and `cifar10`, `cifar100` and `stl10` "
        "where `root` is a new folder of that name",
    )
    train: str = key("train", "the split that is trained on; `train+unlabelled`: several")
    labelled: str | None = key(None, "the split that probes learn from; null: that of `train`")
    test: str = key("test", "the split that is measured on")
    size: Annotated[int, Field(ge=1, le=16_384)] = key(32, "side of a view", "pixels")
    views: Annotated[list[View], Field(min_length=1)] = key(
        [View()], "the views of an image, as many as the objective reads"
    )
    normalize: Normalize = Normalize()
    decode: Literal["exact", "fast"] = key("exact", "all of an image, or of JPEGs only what the views show")
    resident: bool | Literal["auto"] = key(False, RESIDENT)
    window: Positive = key(16, "shards whose samples are mixed with each other", "shards")
    lanes: Positive = key(
        1,
        "parts of each batch that are filled from different shards of a window, so that of a remote data set "
        "each node fetches its part; as many nodes as divide it, and at most `window`",
        "lanes",
    )
    threads: Positive = key(2, "threads of each rank that decode", "threads")
    prefetch: Positive = key(2, "batches that are made ahead", "batches")
    retry_seconds: Annotated[float, Field(ge=0)] = key(
        60.0, "how long a failing read is tried again", "seconds"
    )
    cache: Folder | None = key(
        None, "folder for what comes over the network; null: below the user's cache folder"
    )
    cache_bytes: Positive = key(50_000_000_000, "the most that lies in the cache at a time", "bytes")

    @field_validator("root")
    @classmethod
    def _is_an_address(cls, root: str) -> str:
        return expand_root(check_root(root))

    def access(self, commands: bool) -> Access:
        """How the data set is read; `commands`: whether the user allowed that its root starts programs."""
        return Access(self.retry_seconds, self.cache, self.cache_bytes, commands)


# ---- what is trained -----------------------------------------------------------------------------

WARMUP = "length of the linear warm-up of the learning rate"


class Constant(Section):
    """The learning rate stays, after a linear warm-up.

    `images` may be raised later, and the run goes on, unless an objective's `final_momentum` depends on them.
    """

    kind: Literal["constant"]
    warmup: Count = key(0, WARMUP, "images")

    def factor(self, images_seen: int, images: int) -> float:
        """What the learning rate is multiplied by, of a run of `images`, warm-up apart."""
        return 1.0


class Cosine(Section):
    """The learning rate falls along a half cosine, after a linear warm-up."""

    kind: Literal["cosine"]
    warmup: Count = key(0, WARMUP, "images")
    final: Fraction = key(0.0, "learning rate at the end, as a share of the full one", "1")

    def factor(self, images_seen: int, images: int) -> float:
        """What the learning rate is multiplied by, of a run of `images`, warm-up apart."""
        progress = (images_seen - self.warmup) / max(1, images - self.warmup)
        wave = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
        return self.final + (1 - self.final) * wave


# ---- what is kept and logged ---------------------------------------------------------------------


class Save(Section):
    """Which checkpoints a run writes and keeps."""

    every: Positive = key(..., "images from one checkpoint to the next", "images")
    keep: Positive = key(2, "newest checkpoints that stay", "checkpoints")
    keep_every: Count = key(
        0, "of each so many images the first checkpoint stays too; 0: only the newest", "images"
    )


class Log(Section):
    """When metrics go to the journal, to MLflow and to the screen."""

    every: Positive = key(..., "images from one record to the next", "images")


NO_SECRETS = (  # a recipe is saved, shown and shared
    "an address with a user or password (@), a query (?) or a # is refused; leave them out, and export "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
)


Experiment = Annotated[
    str,
    StringConstraints(min_length=1, max_length=500),  # MLflow's limit
    Wording("a name of 1 to 500 letters, which is what MLflow takes"),
]


class Tracking(Section):
    """The MLflow that receives what the journal has."""

    uri: str | None = key(None, "its address; null: a SQLite file in `outputs`; `none`: the journal only")
    experiment: Experiment = key("hybrid-infomax", "name of the experiment")

    @field_validator("uri")
    @classmethod
    def _holds_no_secret(cls, uri: str | None) -> str | None:
        if uri and set("@?#") & set(uri) and not uri.startswith("sqlite:"):
            raise ValueError(NO_SECRETS)
        file = uri.removeprefix(SQLITE) if uri and uri.startswith(SQLITE) else ""
        return SQLITE + expand_home(file) if file.startswith("~") else uri


# ---- the recipes ---------------------------------------------------------------------------------


PRECISION = (
    "what is computed in; with `bf16` weights and moments are float32. `auto`: `bf16` on a GPU that has it, "
    "and for a denoiser on a CPU with AMX, else `float32`, resolved at the first start"
)

TF32 = (
    "whether a GPU may round the factors of float32 products and convolutions to 10 bits of mantissa, which "
    "is faster; false: IEEE float32. A CPU never does"
)
DETERMINISTIC = (
    "whether cuDNN on a GPU takes deterministic kernels, chosen without timing them; false: the fastest "
    "ones, chosen by timing, and a repeated run may differ in the last bits. A CPU does not read it"
)

COMPILE = (
    "whether torch.compile makes the networks of a step faster: some minutes at the first step, other values "
    "in the last bits. Networks that it cannot compile, and those cut into shards (ZeRO-3, FSDP2), stay as "
    "they are. `auto`: on a GPU"
)


class Pretrain(Section):
    """Pretraining of an encoder by an objective."""

    trains: ClassVar[Literal[True]] = True

    task: Literal["pretrain"]
    seed: Count = key(0, "seed of everything random in the run", "1")
    precision: Literal["auto", "float64", "float32", "bf16"] = key("float32", PRECISION)
    tf32: bool = key(False, TF32)
    deterministic: bool = key(True, DETERMINISTIC)
    compile: bool | Literal["auto"] = key(False, COMPILE)
    outputs: Folder = key("outputs", "folder of all runs")
    run: Name | None = key(None, "name of the run and its folder; null: the recipe's")
    batch: Positive = key(..., "size of an optimizer step, of all ranks together", "images")
    accumulate: Positive = key(1, "parts of a step, one after the other in less memory", "micro-batches")
    groups: Groups
    images: Positive = key(..., "length of training", "images")
    data: Data
    encoder: Encoder = key(..., "the network")
    objective: Objective = key(..., "what the encoder learns by")
    optimizer: Optimizer = key(..., "how a step follows the gradient")
    schedule: Annotated[Constant | Cosine, Field(discriminator="kind")] = key(
        Constant(kind="constant"), "how the learning rate changes"
    )
    save: Save
    log: Log
    evaluate: Evaluate = Evaluate()
    tracking: Tracking = Tracking()
    step_timeout: Annotated[float, Field(ge=0)] = key(
        600,
        "the most for a stage of a step, and `data.retry_seconds` more, then the run fails; 0: any time",
        "seconds",
    )
    profile: Count = key(0, "steps that torch's profiler records, after ten others, to profile.json", "steps")

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
    def other_samples(self) -> tuple[str, str]:
        """What a person reads where the samples are not those of the run so far, and what may help."""
        return f"the data set in {self.data.root} is not the one it was trained on", ""

    @property
    def labelled_split(self) -> str:
        """The split that probes learn from."""
        return self.data.labelled or self.data.train

    def advice(self, images: int | None) -> Iterator[str]:
        """What the keys mean together, for a training split of so many images (None: not known)."""
        return self.objective.advice(self.encoder.norm, images)

    def encoder_options(self) -> dict:
        """All that an encoder is built from, as plain values: exported with its weights."""
        return self.encoder.arguments() | {"size": self.data.size, "group": self.groups.norm}


class EvaluateRun(Section):
    """Evaluation of a run's frozen encoder.

    What is left at its default in `tracking` is as the run's own recipe says.
    """

    trains: ClassVar[Literal[False]] = False

    task: Literal["evaluate"]
    from_: Annotated[Folder, Field(alias="from")] = key(..., "the run's folder")
    images: Positive | None = key(
        None, "which of its checkpoints, by the images seen; null: the newest", "images"
    )
    evaluate: Evaluate = Evaluate()
    tracking: Tracking = Tracking()

    def folder(self, name: str) -> Path:
        """The folder of the run that is evaluated."""
        return Path(self.from_)

    @property
    def launch_precision(self) -> str:
        """What the ranks are prepared to compute in; the run's own recipe decides what they do."""
        return "float32"
