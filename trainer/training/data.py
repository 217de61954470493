"""What a trainer reads: the training split of a recipe, as batches of a run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from data_pipelines.common.retry import to_stderr
from data_pipelines.dali import ImageViews
from data_pipelines.dataset import Dataset
from data_pipelines.image_options import ImageOptions
from data_pipelines.loader import Loader, Maker
from data_pipelines.pillow import has_dali
from data_pipelines.plan import BatchShare, Plan
from data_pipelines.reader import Reader
from data_pipelines.resident import ResidentImages, ResidentViews
from data_pipelines.rows import Rows, Table
from trainer.recipe.schema import Data
from trainer.recipe.training_recipe import TrainingRecipe
from trainer.training.groups import lanes_of

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.float32}  # of the parameters


class TrainingData(ABC):
    """The samples that a run is trained on.

    Attributes:
        name: what a person calls the data set.
        samples: how many there are, an epoch's length.
    """

    name: str
    samples: int

    @abstractmethod
    def loader(self, share: BatchShare, start: int, stop: int) -> Loader:
        """The batches of one rank from `start` images seen to `stop`."""

    @abstractmethod
    def close(self) -> None:
        """Closes what was opened for reading; the loaders are closed before."""


class ImageRecipe(Protocol):
    """What of a recipe says how its images are read."""

    @property
    def seed(self) -> int: ...

    @property
    def precision(self) -> str: ...

    @property
    def batch(self) -> int: ...

    @property
    def data(self) -> Data: ...


class ImageData(TrainingData):
    """Images of a data set's training split, decoded and augmented by DALI, or decoded once and kept.

    Args:
        device: of the views.
        warn: receives a line about an image that was replaced, or a shard that cannot be read for a while.
        stopping: whether the run was asked to stop: a loader that waits for a shard then raises Interrupted.
    """

    def __init__(
        self,
        recipe: ImageRecipe,
        dataset: Dataset,
        device: torch.device,
        warn: Callable[[str], None] = to_stderr,
        stopping: Callable[[], bool] = lambda: False,
    ):
        self.recipe, self.dataset, self.warn = recipe, dataset, warn
        self.reader = Reader(dataset, recipe.data.train, stopping)
        self.name, self.samples = dataset.name, self.reader.images
        self.options = image_options(recipe, device)
        lanes = lanes_of(recipe.batch, recipe.data)
        self.plan = Plan(recipe.seed, self.reader.shards, recipe.data.window, lanes)
        self.resident = (
            ResidentImages(self.reader, device, recipe.data.threads, warn) if recipe.data.resident else None
        )

    def loader(self, share: BatchShare, start: int, stop: int) -> Loader:
        maker = self._maker(share)
        return Loader(maker, self.plan, share, start=start, stop=stop, prefetch=self.recipe.data.prefetch)

    def _maker(self, share: BatchShare) -> Maker:
        views, seed = self.recipe.data.views, self.recipe.seed
        sources = share.sources(len(views))
        if self.resident:
            return ResidentViews(self.resident, self.options, views, sources, seed)
        if not has_dali():
            self.warn("DALI is not installed: pillow decodes, in one thread; data.resident=true decodes once")
        return ImageViews(self.reader, self.options, views, sources, seed, share.micro_batch, self.warn)

    def close(self) -> None:
        self.reader.close()


class RowData(TrainingData):
    """Rows of tables in memory or in mapped files: an epoch is all of them in random order.

    Args:
        tables: [rows, ...] by name, in the order in which an objective reads them.
        device: of the views.
    """

    def __init__(self, name: str, tables: Mapping[str, Table], recipe: TrainingRecipe, device: torch.device):
        self.name, self.tables, self.recipe, self.device = name, tables, recipe, device
        self.samples = len(next(iter(tables.values())))
        self.plan = Plan(recipe.seed, [self.samples], 1)

    def loader(self, share: BatchShare, start: int, stop: int) -> Loader:
        maker = Rows(list(self.tables.values()), device=self.device, dtype=DTYPES[self.recipe.precision])
        return Loader(maker, self.plan, share, start=start, stop=stop)

    def close(self) -> None:
        return


def image_options(recipe: ImageRecipe, device: torch.device) -> ImageOptions:
    """How the recipe's images are decoded in training, onto this device."""
    data = recipe.data
    return ImageOptions(
        data.size, data.normalize, data.threads, device, DTYPES[recipe.precision], data.decode
    )
