"""What takes the place of images that cannot be decoded: the same image for every rank and every restart."""

from collections.abc import Callable

import numpy as np

from data_pipelines.common.errors import UserError
from data_pipelines.common.retry import Retry
from data_pipelines.reader import Reader


class Replacements:
    """The samples of a split that cannot be decoded; each is replaced by the next one that can.

    Args:
        reader: of the split.
        warn: receives a line about each sample.

    Attributes:
        undecodable: their ids.
    """

    def __init__(self, reader: Reader, warn: Callable[[str], None]):
        self.reader, self.warn = reader, warn
        self.undecodable: set[int] = set()

    def note(self, samples: np.ndarray, retry: Retry) -> None:
        """Notes samples that cannot be decoded, and reports what takes their place. Raises as `applied`."""
        unique = np.unique(samples).tolist()
        self.undecodable.update(unique)
        for sample in unique:
            where, other = self.reader.describe(sample, retry), self._decodable(sample)
            self.warn(
                f"{where} cannot be decoded; image {other} of the split takes its place "
                f"({len(self.undecodable)} so far)"
            )

    def applied(self, ids: np.ndarray) -> np.ndarray:
        """The samples that are shown in the place of these, int64 [n].

        Raises:
            UserError: no image of the split can be decoded.
        """
        return np.array([self._decodable(sample) for sample in ids]) if self.undecodable else ids

    def _decodable(self, sample: int) -> int:
        for step in range(self.reader.images):
            if (candidate := (int(sample) + step) % self.reader.images) not in self.undecodable:
                return candidate
        raise UserError(f"{self.reader.root}: no image of '{self.reader.split}' can be decoded")
