"""What plans of all tasks have in common."""

from collections.abc import Callable
from dataclasses import dataclass, field

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Dataset
from data_pipelines.dataset_loading import load_dataset
from trainer.objectives.objective import Objective
from trainer.recipe.automatic import Split
from trainer.recipe.schema import Data
from trainer.runs import machine
from trainer.tasks.data_making import describe_making, folder_to_make


@dataclass(frozen=True)
class Planned:
    """What a run is trained on, and what it trains.

    Attributes:
        samples: lines about what it is trained on, the first behind a heading.
        model: lines about what is trained, likewise.
        count: how many samples an epoch has; None: not known yet.
        unit: what they are.
        stored: bytes at rest that an epoch reads; None: not known, or they are mapped into memory.
        warnings: what a person should know.
        split: images that are decoded; None: none, or they are not there yet.
        build: makes what is trained, with its weights.
        views: shapes of what a sample brings.
    """

    samples: list[str]
    model: list[str]
    build: Callable[[], Objective]
    views: list[tuple[int, ...]]
    count: int | None = None
    unit: str = "images"
    stored: int | None = None
    warnings: list[str] = field(default_factory=list)
    split: Split | None = None


def look_at(data: Data, commands: bool) -> tuple[Dataset | None, str]:
    """The data set of a recipe where it is there, else None and why it is not."""
    try:
        return load_dataset(data.root, data.source, data.access(commands)), ""
    except UserError as error:
        if (folder := folder_to_make(data)) is not None:
            return None, f"not there: the run begins with {describe_making(folder, data)}"
        return None, str(error)


def planned_split(dataset: Dataset, data: Data) -> Split | None:
    """The training split; None of a remote one whose sizes are asked for: every index would be fetched."""
    return None if dataset.remote and data.resident else machine.training_split(dataset, data)


def describe_data(data: Data, dataset: Dataset) -> str:
    """Splits of a data set in words."""
    train, test = dataset.split(data.train), dataset.split(data.test)
    return (
        f"{dataset.where} ({dataset.source}): "
        f"{train.images:,} training images in {len(train.shards)} shards, "
        f"{megabytes(stored(dataset, data.train))}; {test.images:,} test images; "
        f"{len(dataset.classes)} classes"
    )


def stored(dataset: Dataset, split: str) -> int:
    """Bytes of a split's shards."""
    return sum(shard.bytes for shard in dataset.split(split).shards)


def megabytes(size: float) -> str:
    """Bytes in words."""
    return f"{size / 1e6:,.1f} MB"
