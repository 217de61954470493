"""The speed of training, for the log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from trainer.training.trainer import Trainer


class Clock:
    """Images a second and the share of time spent waiting for data, between two readings."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._mark()

    def _mark(self) -> None:
        self._began, self._images = time.perf_counter(), self.trainer.images
        self._waited, self._left_out = self.trainer.loader.waited, 0.0

    def read(self) -> dict[str, float]:
        """The figures since the last reading."""
        seconds = time.perf_counter() - self._began - self._left_out
        images, waited = self.trainer.images - self._images, self.trainer.loader.waited - self._waited
        self._mark()
        return {"images_per_second": images / seconds, "data_wait": min(1.0, waited / seconds)}

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time that does not count: evaluation and saving."""
        began = time.perf_counter()
        yield
        self._left_out += time.perf_counter() - began
