"""What an evaluator is, and what it may read: the contract of `trainer.evaluation`.

with EvaluationContext(
    recipe=recipe,                                      # a `Pretrain`
    options=recipe.evaluate,                            # which evaluators are wanted, and how
    objective=trainer.unsharded(),                      # collective
    dataset=trainer.data.dataset,
    distributed=trainer.context,
    images=replace(trainer.data.options, decode="exact"),  # during pretraining `trainer.data.options`
    folder=run.folder.path,                             # of figures/, and of features/ for a while
    say=run.progress.say,
    untrained=lambda: build_objective(recipe),          # final evaluation only
    stopping=trainer.data.reader.stopping,              # during pretraining only
) as context:
    figures = evaluate_online(context)                  # trainer.evaluation.online, during pretraining
    measured = measure(context)                         # trainer.evaluation.measure, at the end
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipelines.dali import in_order
from data_pipelines.dataset import Dataset
from data_pipelines.image_options import ImageOptions
from data_pipelines.reader import Reader
from trainer.distributed.launch import DistributedContext
from trainer.evaluation import pictures
from trainer.evaluation.failures import Failures
from trainer.evaluation.features import (
    FOLDER,
    Encode,
    Examples,
    Features,
    cached,
    gathered,
    subset,
)
from trainer.evaluation.readers import Readers
from trainer.objectives.objective import EncoderObjective
from trainer.recipe.evaluation import Evaluate
from trainer.recipe.schema import Pretrain


@dataclass(kw_only=True)
class EvaluationContext:
    """What an evaluator may read. Its `with` closes the readers and removes the cached features.

    All of it is the same on every rank, but for `distributed`.

    Attributes:
        recipe: of the run that is evaluated.
        options: the `evaluate` section that holds, the recipe's or that of `recipe=evaluate`.
        objective: with all parameters on every rank, in evaluation mode while an evaluator runs.
        dataset: of the recipe.
        distributed: this process among the ranks.
        images: how images are decoded for the encoder.
        folder: the folder of the run, or of one of its evaluations: figures/, and for a while features/.
        say: receives lines for a person; prints on rank 0 alone.
        untrained: builds the objective as it was before training, for the controls.
        stopping: whether the run was asked to stop, which ends the wait for a shard.
        subject: what is evaluated, for lines on the screen.
        encode: images [n, 3, H, W] to features [n, width] by name; by default `objective.features`.
        readers: of the splits; shared by the contexts of a run's controls.
        prefix: what the names of this context's figures begin with, where a control has another one.
        failures: what could not be measured; shared as `readers` are.
    """

    recipe: Pretrain
    options: Evaluate
    objective: EncoderObjective
    dataset: Dataset
    distributed: DistributedContext
    images: ImageOptions
    folder: Path
    say: Callable[[str], None] = lambda line: None
    untrained: Callable[[], EncoderObjective] | None = None
    stopping: Callable[[], bool] = lambda: False
    subject: str = "encoder"
    encode: Encode | None = None
    readers: Readers | None = None
    prefix: str = ""
    failures: Failures = field(default_factory=Failures)
    _stack: ExitStack = field(init=False, repr=False, default_factory=ExitStack)
    _examples: Sequence[Examples | None] | None = field(init=False, repr=False, default=None)
    _no_examples: Exception | None = field(init=False, repr=False, default=None)
    # By split, and whether mirrored images are among them.
    _subsets: dict[tuple[str, bool], tuple[Features, Tensor] | None] = field(
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        if self.encode is None:
            self.encode = self.objective.features
        if self.readers is None:
            self.readers = Readers(self.dataset, self.stopping)
            self._stack.callback(self.readers.close)

    def __enter__(self) -> "EvaluationContext":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def encoding(self, subject: str, encode: Encode, **changes: Any) -> "EvaluationContext":
        """A context of other features: the same readers, its own cached features, and `changes` of fields."""
        return replace(self, subject=subject, encode=encode, **changes)

    @property
    def _opened(self) -> Readers:
        assert self.readers is not None  # since `__post_init__`
        return self.readers

    # ---- where, and on what ------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.distributed.device

    @property
    def is_main(self) -> bool:
        return self.distributed.is_main

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty for data without labels."""
        return self.dataset.classes

    @property
    def train(self) -> Reader:
        return self._opened[self.recipe.data.train]

    @property
    def labelled(self) -> Reader:
        """The split that probes learn from."""
        return self._opened[self.recipe.labelled_split]

    @property
    def test(self) -> Reader:
        return self._opened[self.recipe.data.test]

    @property
    def reference(self) -> Reader:
        """The images that test images are compared with: those with labels, of data without any `train`."""
        return self.labelled if self.supervised else self.train

    @property
    def supervised(self) -> bool:
        """Whether both of these splits have images with a label: probes learn from them, and are tested."""
        if not self.classes:
            return False
        return all(len(self._opened.labelled_ids(reader)) for reader in (self.labelled, self.test))

    # ---- features, encoded once ----------------------------------------------------------------------

    def examples(self) -> Sequence[Examples | None]:
        """The features of `reference` and of `test` images; collective, encoded at the first call.

        Where it is `supervised`: all images that have a label, with all features, in files that every rank
        maps until the context ends. Else: `options.online_images` of each, `y` alone, on rank 0; None on
        other ranks.

        Raises:
            SharedError: on every rank, where one cannot write the files; again at the next call.
        """
        if self._no_examples:  # encoding them again would take as long, and fail as before
            raise self._no_examples
        if self._examples is None:
            try:
                self._examples = self._cached() if self.supervised else self._sampled()
            except Exception as error:
                self._no_examples = error
                raise
        return self._examples

    def _cached(self) -> list[Examples]:
        assert self.encode is not None  # since `__post_init__`
        splits = [(reader, self._opened.labelled_ids(reader)) for reader in (self.reference, self.test)]
        features = cached(self.folder / FOLDER, self.encode, splits, self.images, self.options.batch)
        return self._stack.enter_context(features)

    def _sampled(self) -> list[Examples | None]:
        examples = []
        for reader in (self.reference, self.test):
            rows = self.sampled(reader)
            examples.append(rows and Examples(*rows, self.sampled_ids(reader)))
        return examples

    def sampled_ids(self, reader: Reader) -> np.ndarray:
        """A fixed random choice of `options.online_images` images of a split, in the order of their ids."""
        return subset(reader, self.options.online_images, self.recipe.seed)

    def sampled(self, reader: Reader, mirrored: bool = False) -> tuple[Features, Tensor] | None:
        """`y` [n, d] of the images `sampled_ids`, float32, and labels int64 [n], -1 for none; on rank 0.

        Where the objective has a projection head, its output `head` too.

        Collective, encoded at the first call.

        Args:
            mirrored: adds `mirrored` [n, d], the y of the same images with left and right exchanged.

        Returns:
            None on other ranks.
        """

        def encode(view: Tensor) -> Features:
            assert self.encode is not None  # since `__post_init__`
            features = self.encode(view)
            y = {name: rows for name, rows in features.items() if name in ("y", "head")}
            return y | {"mirrored": self.encode(view.flip(-1))["y"]} if mirrored else y

        key = reader.split, mirrored
        if key not in self._subsets and (reader.split, True) not in self._subsets:
            ids = self.sampled_ids(reader)
            self._subsets[key] = gathered(encode, reader, ids, self.images, self.options.batch)
        return self._subsets.get((reader.split, True), self._subsets.get(key))

    def batch_norm_images(self) -> Iterator[Tensor]:
        """Batches of the images that batch-norm is re-estimated on: the sample of `train`, in whole groups.

        Where there are fewer images than a group, all of them are one batch.
        """
        group, ids = self.recipe.groups.norm, self.sampled_ids(self.train)
        ids = ids[: len(ids) // group * group or len(ids)]
        batch = max(group, self.options.batch // group * group)
        return (view for view, _ in in_order(self.train, self.images, ids, batch))

    # ---- what fails ------------------------------------------------------------------------------------

    def fail(self, names: Iterable[str], why: str) -> None:
        """Figures of these names could not be measured, for one reason."""
        self.failures.add([self.prefix + name for name in names], why, self.say)

    def surviving(self, name: str, fatal: tuple[type[Exception], ...] = ()) -> AbstractContextManager[None]:
        """As `Failures.surviving`, for the figures of this context."""
        return self.failures.surviving(self.prefix + name, self.say, fatal)

    # ---- pictures --------------------------------------------------------------------------------------

    def drawing(self, name: str) -> AbstractContextManager[Path]:
        """The path of a picture in figures/; on rank 0. A picture that fails costs a line, no results."""
        return pictures.drawing(self.folder, name)

    def pictures(self, reader: Reader, ids: np.ndarray, size: int | None = None) -> list[np.ndarray]:
        """Images as float [H, W, 3] in [0, 1], `size` pixels a side (None: as the encoder sees them)."""
        return pictures.pictures(reader, ids, self.recipe.data, size)


class Evaluator(ABC):
    """One kind of measurement. `measure.FINAL` and `online.ONLINE` list the evaluators in their order.

    Attributes:
        name: what the names of its figures, or of its picture, begin with.
    """

    name: str = "evaluation"

    def wanted(self, context: EvaluationContext) -> bool:
        """Whether it is run: what the options, the objective and the data say. Equal on every rank."""
        return True

    @abstractmethod
    def run(self, context: EvaluationContext) -> dict[str, float]:
        """The figures by name, as journal and results.json hold them; collective.

        A figure is computed from the same images in the same batches on any number of ranks. The result is
        equal on every rank, or on rank 0 alone and empty elsewhere. Pictures are drawn by rank 0, into
        `context.drawing(name)`.

        Raises:
            UserError, SharedError: what was evaluated, or the disk, does not allow it.
        """


def run_evaluators(
    evaluators: Iterable[Evaluator], context: EvaluationContext, fatal: tuple[type[Exception], ...] = ()
) -> dict[str, float]:
    """The figures of the evaluators that are wanted, in their order; collective.

    One that fails is an entry of `context.failures`, and the others go on; an error of the kinds `fatal` is
    raised.
    """
    figures: dict[str, float] = {}
    for evaluator in evaluators:
        with context.surviving(evaluator.name, fatal):
            if evaluator.wanted(context):
                figures |= evaluator.run(context)
    return figures
