"""What every recipe that trains has: all that trainer, preflight, plan, report and tracking read of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from data_pipelines.views import Shuffle
from trainer.recipe.groups import Groups
from trainer.recipe.objective import ObjectiveOptions
from trainer.recipe.optimizers import OptimizerOptions
from trainer.recipe.schema import Constant, Cosine, Data, Log, Save, Tracking


class Intervals(Protocol):
    """What is measured during training: after how many images each, 0 for never."""

    @property
    def every(self) -> int: ...


class TrainingRecipe(Protocol):
    """A recipe that trains, frozen. Intervals and lengths are in images."""

    @property
    def task(self) -> str: ...

    @property
    def seed(self) -> int: ...

    @property
    def precision(self) -> str: ...

    @property
    def compile(self) -> bool | str: ...

    @property
    def outputs(self) -> str: ...

    @property
    def run(self) -> str | None: ...

    @property
    def batch(self) -> int: ...

    @property
    def accumulate(self) -> int: ...

    @property
    def groups(self) -> Groups: ...

    @property
    def images(self) -> int: ...

    @property
    def data(self) -> Data | None: ...

    @property
    def objective(self) -> ObjectiveOptions: ...

    @property
    def optimizer(self) -> OptimizerOptions: ...

    @property
    def schedule(self) -> Constant | Cosine: ...

    @property
    def save(self) -> Save: ...

    @property
    def log(self) -> Log: ...

    @property
    def evaluate(self) -> "Intervals": ...

    @property
    def tracking(self) -> Tracking: ...

    @property
    def step_timeout(self) -> float: ...

    @property
    def profile(self) -> int: ...

    @property
    def key_shuffle(self) -> Shuffle | None: ...

    @property
    def stage_timeout(self) -> float: ...

    @property
    def other_samples(self) -> tuple[str, str]: ...

    def advice(self, images: int | None) -> Iterator[str]: ...

    def folder(self, name: str) -> Path: ...
