"""The readers of an evaluation: one a split, and which of its samples have a label."""

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np

from data_pipelines.dataset import Dataset
from data_pipelines.reader import Reader
from trainer.evaluation.features import labelled_ids


class Readers:
    """Readers of a data set's splits, each opened when it is first read, and closed together.

    Args:
        stopping: whether the run was asked to stop: a read that fails for a while then raises Interrupted.
    """

    def __init__(self, dataset: Dataset, stopping: Callable[[], bool]):
        self.dataset, self.stopping = dataset, stopping
        self._stack = ExitStack()
        self._readers: dict[str, Reader] = {}
        self._labelled: dict[str, np.ndarray] = {}

    def __getitem__(self, split: str) -> Reader:
        if split not in self._readers:
            reader = Reader(self.dataset, split, self.stopping)
            self._readers[split] = self._stack.enter_context(reader)
        return self._readers[split]

    def labelled_ids(self, reader: Reader) -> np.ndarray:
        """As `features.labelled_ids`; the index is scanned once a split."""
        if reader.split not in self._labelled:
            self._labelled[reader.split] = labelled_ids(reader)
        return self._labelled[reader.split]

    def close(self) -> None:
        self._stack.close()
