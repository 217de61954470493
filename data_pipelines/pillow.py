"""The maker of views where DALI is not installed: pillow decodes each batch, and torch makes its views."""

import importlib.util
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import torch

from data_pipelines.common.errors import UserError
from data_pipelines.common.retry import Retry, to_stderr
from data_pipelines.draws import Draws, draw
from data_pipelines.image_options import ImageOptions
from data_pipelines.loader import Made, Maker
from data_pipelines.reader import Reader
from data_pipelines.resident import decoded
from data_pipelines.resident_views import make_view
from data_pipelines.views import View


def has_dali() -> bool:
    """Whether DALI is installed."""
    return bool(importlib.util.find_spec("nvidia")) and bool(importlib.util.find_spec("nvidia.dali"))


class PillowViews(Maker):
    """As `dali.ImageViews`, in one thread: its arguments, its replacements; views equal within rounding."""

    def __init__(
        self,
        reader: Reader,
        options: ImageOptions,
        views: list[View],
        sources: list[int],
        seed: int,
        warn: Callable[[str], None] = to_stderr,
    ):
        self.reader, self.options, self.views = reader, options, views
        self.sources, self.seed, self.warn = sources, seed, warn
        self.retry = Retry(reader.dataset.access.retry_seconds, warn)
        self.replaced: dict[int, int] = {}  # sample -> the one that takes its place

    def __call__(self, ids: list[np.ndarray], positions: list[np.ndarray]) -> Made:
        """The views. Raises UserError where no image can be decoded, and as `Reader.read`."""
        used, pixels = zip(*(self._decoded(source) for source in ids), strict=True)
        views = [
            self._view(pixels[source], view, number, positions[number])
            for number, (view, source) in enumerate(zip(self.views, self.sources, strict=True))
        ]
        labels = self.reader.entries(used[0], self.retry)["label"].astype(np.int64)
        return Made(views, list(used), torch.from_numpy(labels))

    def _decoded(self, ids: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """The samples that are shown, and their pixels."""
        used = np.array([self.replaced.get(sample, sample) for sample in ids.tolist()])
        pixels = [decoded(image) for image in self.reader.read(used, self.retry)]
        for slot in [slot for slot, image in enumerate(pixels) if image is None]:
            used[slot], pixels[slot] = self._next(int(ids[slot]))
        return used, [image for image in pixels if image is not None]

    def _next(self, sample: int) -> tuple[int, np.ndarray]:
        """The sample that takes the place of one that cannot be decoded: the next that can."""
        for step in range(1, self.reader.images):
            other = (sample + step) % self.reader.images
            image = decoded(self.reader.read(np.array([other]), self.retry)[0])
            if image is not None:
                self.replaced[sample] = other
                self.warn(
                    f"{self.reader.describe(sample, self.retry)} cannot be decoded; image {other} of the "
                    f"split takes its place ({len(self.replaced)} so far)"
                )
                return other, image
        raise UserError(f"{self.reader.root}: no image of '{self.reader.split}' can be decoded")

    def _view(self, pixels: list[np.ndarray], view: View, number: int, positions: np.ndarray) -> torch.Tensor:
        """One view of images of any sizes, those of a size together: [n, 3, size, size]."""
        size, options = self.options.size, self.options
        sizes = np.array([image.shape[:2] for image in pixels])
        draws = draw(view, self.seed, positions, number, sizes)
        made = torch.empty(len(pixels), 3, size, size, device=options.device, dtype=options.dtype)
        made = made.contiguous(memory_format=torch.channels_last)
        for same in np.unique(sizes, axis=0):
            slots = np.flatnonzero((sizes == same).all(axis=1))
            store = torch.from_numpy(np.stack([pixels[slot] for slot in slots])).to(options.device)
            part = make_view(store, np.arange(len(slots)), view, taken(draws, slots), size, options.normalize)
            made[torch.from_numpy(slots).to(options.device)] = part.to(options.dtype)
        return made

    def ahead(self, now: np.ndarray, soon: np.ndarray) -> None:
        self.reader.ahead(now, soon)

    def interrupted(self, waited: float = 0.0) -> bool:
        """Whether the run should stop while a shard cannot be read, or the wait takes more than a second."""
        return (self.retry.failing or waited > 1) and self.reader.stopping()

    def stop(self) -> None:
        self.retry.stop()


def taken(draws: Draws, slots: np.ndarray) -> Draws:
    """The draws of some samples."""
    return Draws(**{field.name: getattr(draws, field.name)[slots] for field in fields(Draws)})
