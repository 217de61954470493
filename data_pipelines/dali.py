"""The maker of views: encoded images are read, their augmentations drawn, and DALI decodes, or pillow."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from data_pipelines.common.errors import Undecodable
from data_pipelines.common.retry import Retry, to_stderr
from data_pipelines.common.shortage import shortage_named
from data_pipelines.draws import Draws, draw
from data_pipelines.image_options import ImageOptions
from data_pipelines.loader import Made, Maker, Prefetch
from data_pipelines.pillow import PillowPipeline, has_dali
from data_pipelines.reader import Reader
from data_pipelines.replacements import Replacements
from data_pipelines.views import View

Pipeline = Callable[[list[list[np.ndarray]], list[np.ndarray], list[Draws]], list[torch.Tensor]]
AHEAD = 16  # batches: how far ahead of an evaluation shards are fetched


class ImageViews(Maker):
    """Augmented views of a data set's images; an image that cannot be decoded is replaced (`Replacements`).

    Views are [n, 3, H, W], channels_last. Where DALI is not installed, pillow decodes.

    Args:
        reader: of the split; it stays the caller's to close.
        options: how images are decoded.
        views: what becomes of an image, one a view.
        sources: for each view, which list of samples it is made from (`BatchShare.sources`).
        seed: of the run; the augmentations are drawn from it.
        batch: most samples in a call.
        warn: receives a line about an image that was replaced, or a shard that cannot be read for a while.
    """

    def __init__(
        self,
        reader: Reader,
        options: ImageOptions,
        views: list[View],
        sources: list[int],
        seed: int,
        batch: int,
        warn: Callable[[str], None] = to_stderr,
    ):
        self.reader, self.views, self.sources, self.seed, self.warn = reader, views, sources, seed, warn
        self.retry = Retry(reader.dataset.access.retry_seconds, warn)
        self.dtype = options.dtype
        self.making = f"making batches of {batch} images of {options.size} px on {options.device}"
        self.replacements = Replacements(reader, warn)
        self.undecodable = self.replacements.undecodable  # sample ids
        with shortage_named(self.making):
            self.pipeline = _pipeline(views, sources, options, batch)

    def __call__(self, ids: list[np.ndarray], positions: list[np.ndarray]) -> Made:
        """The views; an image that cannot be decoded is replaced, for as long as the maker lives.

        Raises:
            UserError: no image of the split can be decoded; or memory, threads or open files are lacking; and
                as `Reader.read`.
            Exception: DALI's, where no image is to blame for it.
        """
        with shortage_named(self.making):
            while True:
                ids = [self.replacements.applied(source) for source in ids]
                try:
                    return self._made(ids, positions)
                except Undecodable as error:
                    slots = zip(ids, error.slots, strict=True)
                    self.replacements.note(np.concatenate([source[at] for source, at in slots]), self.retry)

    def _made(self, ids: list[np.ndarray], positions: list[np.ndarray]) -> Made:
        encoded = [self.reader.read(source, self.retry) for source in ids]
        entries = [self.reader.entries(source, self.retry) for source in ids]
        sizes = [np.stack([e["height"], e["width"]], axis=1).astype(np.int64) for e in entries]
        draws = [
            draw(view, self.seed, positions[number], number, sizes[self.sources[number]])
            for number, view in enumerate(self.views)
        ]
        views = self.pipeline(encoded, sizes, draws)
        labels = torch.from_numpy(entries[0]["label"].astype(np.int64))
        return Made([view.to(self.dtype) for view in views], ids, labels)

    def ahead(self, now: np.ndarray, soon: np.ndarray) -> None:
        self.reader.ahead(now, soon)

    def interrupted(self, waited: float = 0.0) -> bool:
        """Whether the run should stop while a shard cannot be read, or the wait takes more than a second."""
        return (self.retry.failing or waited > 1) and self.reader.stopping()

    def stop(self) -> None:
        self.retry.stop()


def _pipeline(views: list[View], sources: list[int], options: ImageOptions, batch: int) -> Pipeline:
    """What decodes batches and makes their views."""
    parts = views, sources, options.size, options.normalize
    if not has_dali():
        return PillowPipeline(*parts, options.device)
    from data_pipelines.dali_pipeline import ImagePipeline

    return ImagePipeline(*parts, batch, options.threads, options.device, options.decode == "fast")


def in_order(
    reader: Reader,
    options: ImageOptions,
    ids: np.ndarray,
    batch: int,
    warn: Callable[[str], None] = to_stderr,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields the plain images of samples, [n, 3, H, W], and their labels, int64 [n] on the CPU, in order.

    For evaluation: nothing is drawn, and an image that cannot be decoded is replaced as in training.

    Raises:
        Interrupted: a shard cannot be read and the reader's `stopping()` is true.
    """
    maker = ImageViews(reader, options, [View()], [0], 0, batch, warn)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(ids), batch):
            part = ids[start : start + batch]
            maker.ahead(part, ids[start + batch : start + AHEAD * batch])
            made = maker([part], [np.arange(len(part))])  # positions: nothing is drawn
            yield made.views[0], made.labels

    items = Prefetch(batches(), 2, lambda _: maker.interrupted())
    try:
        yield from items
    finally:
        maker.stop()
        items.close()
