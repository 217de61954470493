"""Images that are decoded once and kept in memory, and the maker of their views.

Views are made by `resident_views`, of the draws that DALI's graphs take, and equal DALI's within rounding.
Pillow decodes, so that machines with and without DALI see the same pixels; of a JPEG they may differ from
DALI's.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from data_pipelines.common.retry import Retry, to_stderr
from data_pipelines.common.shortage import shortage_named
from data_pipelines.draws import draw
from data_pipelines.image_options import ImageOptions
from data_pipelines.loader import Made, Maker
from data_pipelines.pillow import decoded
from data_pipelines.reader import INDEX_ROWS, Reader
from data_pipelines.replacements import Replacements
from data_pipelines.resident_views import make_view
from data_pipelines.views import View

AT_ONCE = 1024  # images that are read and decoded together


def one_size(reader: Reader) -> tuple[int, int] | None:
    """Height and width of all images of a split, by its index; None where they differ."""
    size: tuple[int, int] | None = None
    for ids in _parts(reader.images, INDEX_ROWS):
        entries = reader.entries(ids)
        size = size or (int(entries["height"][0]), int(entries["width"][0]))
        if (entries["height"] != size[0]).any() or (entries["width"] != size[1]).any():
            return None
    return size


def decoded_bytes(reader: Reader) -> int | None:
    """Bytes of a split's decoded images, uint8 RGB; None where the images have several sizes."""
    size = one_size(reader)
    return None if size is None else reader.images * size[0] * size[1] * 3


class ResidentImages:
    """A split's decoded images in the memory of a device; they are decoded at the first call of `load`.

    An image that cannot be decoded is replaced by the next one that can, as `ImageViews` does.

    Args:
        reader: of the split, whose images have one size; it stays the caller's.
        device: which keeps the images.
        threads: CPU threads that decode.
        warn: receives a line about an image that was replaced, or a shard that cannot be read for a while.
    """

    def __init__(
        self,
        reader: Reader,
        device: torch.device,
        threads: int = 1,
        warn: Callable[[str], None] = to_stderr,
    ):
        self.reader, self.device, self.threads, self.warn = reader, device, threads, warn
        self.pixels: torch.Tensor | None = None  # uint8 [images, height, width, 3]
        self.labels = np.empty(0, np.int64)
        self.shown = np.arange(reader.images)  # int64 [images]: whose pixels and label each has

    def load(self, retry: Retry) -> torch.Tensor:
        """The images, uint8 [images, height, width, 3], on the device.

        Raises:
            ValueError: their sizes differ.
            UserError: none can be decoded, or memory is lacking; and as `Reader.read`.
            Interrupted: the retry was stopped.
        """
        if self.pixels is None:
            with shortage_named(f"keeping {self.reader.images:,} decoded images", "set data.resident=false"):
                self.pixels = self._decoded(retry).to(self.device)
        return self.pixels

    def _decoded(self, retry: Retry) -> torch.Tensor:
        if (size := one_size(self.reader)) is None:
            raise ValueError(f"the images of '{self.reader.split}' have several sizes")
        pixels = np.empty((self.reader.images, *size, 3), np.uint8)
        labels, undecodable = [], list[int]()
        with ThreadPoolExecutor(self.threads) as pool:
            for ids in _parts(self.reader.images, AT_ONCE):
                labels.append(self.reader.entries(ids, retry)["label"].astype(np.int64))
                images = pool.map(decoded, self.reader.read(ids, retry))
                for sample, image in zip(ids.tolist(), images, strict=True):
                    if image is None or image.shape[:2] != size:
                        undecodable.append(sample)
                    else:
                        pixels[sample] = image
        self.labels = np.concatenate(labels)
        replacements = Replacements(self.reader, self.warn)
        replacements.note(np.array(undecodable, np.int64), retry)
        self.shown = replacements.applied(self.shown)
        return torch.from_numpy(pixels)


class ResidentViews(Maker):
    """Augmented views of resident images: [n, 3, size, size], channels_last, on the device of the images.

    Args:
        images: of the training split.
        options: how views are made.
        views: what becomes of an image, one a view.
        sources: for each view, which list of samples it is made from (`BatchShare.sources`).
        seed: of the run; the augmentations are drawn from it.
    """

    def __init__(
        self, images: ResidentImages, options: ImageOptions, views: list[View], sources: list[int], seed: int
    ):
        self.images, self.options, self.views = images, options, views
        self.sources, self.seed = sources, seed
        self.retry = Retry(images.reader.dataset.access.retry_seconds, images.warn)

    def __call__(self, ids: list[np.ndarray], positions: list[np.ndarray]) -> Made:
        """The views; raises as `ResidentImages.load`."""
        store = self.images.load(self.retry)
        ids = [self.images.shown[source] for source in ids]
        views = []
        for number, (view, source) in enumerate(zip(self.views, self.sources, strict=True)):
            sizes = np.tile(np.array(store.shape[1:3]), (len(ids[source]), 1))
            draws = draw(view, self.seed, positions[number], number, sizes)
            made = make_view(store, ids[source], view, draws, self.options.size, self.options.normalize)
            views.append(made.to(self.options.dtype))
        return Made(views, ids, torch.from_numpy(self.images.labels[ids[0]]))

    def interrupted(self, waited: float = 0.0) -> bool:
        """Whether the run should stop while a shard cannot be read, or the wait takes more than a second."""
        return (self.retry.failing or waited > 1) and self.images.reader.stopping()

    def stop(self) -> None:
        self.retry.stop()


def _parts(images: int, size: int) -> Iterator[np.ndarray]:
    """The samples 0 … images - 1, so many at once."""
    for start in range(0, images, size):
        yield np.arange(start, min(start + size, images))
