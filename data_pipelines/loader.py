"""Plan, reader, draws and DALI put together; the whole state is the number of images seen."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from data_pipelines.common.errors import UserError
from data_pipelines.common.retry import Interrupted, Retry, to_stderr
from data_pipelines.dali import ImagePipeline, Undecodable
from data_pipelines.draws import draw
from data_pipelines.noise import Noise
from data_pipelines.plan import Plan, Shuffle, rank_slice, shuffled
from data_pipelines.reader import Reader
from data_pipelines.views import Normalize, View

AHEAD = 16  # batches: how far ahead of an evaluation shards are fetched


@dataclass(frozen=True)
class Batch:
    """A rank's part of a global batch (of one micro-batch of it, where gradients accumulate)."""

    views: list[torch.Tensor]  # each [n, 3, H, W], channels_last
    ids: np.ndarray  # int64 [views, n]: the samples that were decoded
    positions: np.ndarray  # int64 [views, n]: their places in the run
    label: torch.Tensor  # int64 [n], of the first view's samples
    images_seen: int  # by all ranks, before this global batch
    noise: Noise
    order: np.ndarray | None = None  # int64 [global batch]: whose key view each slot holds; None: its own


@dataclass(frozen=True)
class Images:
    """How images are decoded, the same for training and evaluation.

    decode: "exact", or "fast" (`ImagePipeline` says what differs). With "fast", the same result after a
    restart and on any ranks is promised for undamaged images alone.
    """

    size: int
    normalize: Normalize
    threads: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    decode: Literal["exact", "fast"] = "exact"


class ViewMaker:
    """Sample ids -> views: reads, draws and decodes; an image that cannot be decoded is replaced.

    The replacement is the next sample that can be: a function of the data alone, so every rank and
    every restart makes the same.
    """

    def __init__(
        self,
        reader: Reader,
        images: Images,
        views: list[View],
        sources: list[int],
        seed: int,
        batch: int,
        warn: Callable[[str], None],
    ):
        self.reader, self.views, self.sources, self.seed, self.warn = reader, views, sources, seed, warn
        self.patience = Retry(reader.dataset.access.patience, warn)
        self.dtype = images.dtype
        self.pipeline = ImagePipeline(
            views,
            sources,
            images.size,
            images.normalize,
            batch,
            images.threads,
            images.device,
            images.decode == "fast",
        )
        self.bad: set[int] = set()

    def __call__(
        self, ids: list[np.ndarray], positions: list[np.ndarray]
    ) -> tuple[list[torch.Tensor], list[np.ndarray]]:
        """Views of the samples `ids` (an array a source) at `positions` (an array a view).

        Returns:
            The views, each [n, 3, H, W], and the ids that were decoded, an array a source.
        """
        while True:
            ids = [np.array([self._good(i) for i in source]) if self.bad else source for source in ids]
            encoded = [self.reader.read(source, self.patience) for source in ids]
            entries = [self.reader.entries(source, self.patience) for source in ids]
            sizes = [np.stack([e["height"], e["width"]], axis=1).astype(np.int64) for e in entries]
            draws = [
                draw(view, self.seed, positions[number], number, sizes[self.sources[number]])
                for number, view in enumerate(self.views)
            ]
            try:
                return [view.to(self.dtype) for view in self.pipeline(encoded, sizes, draws)], ids
            except Undecodable as error:
                found = [source[slots] for source, slots in zip(ids, error.slots, strict=True)]
                found = np.unique(np.concatenate(found)).tolist()
                self.bad.update(found)
                for sample in found:
                    where, other = self.reader.describe(sample, self.patience), self._good(sample)
                    self.warn(
                        f"{where} cannot be decoded; image {other} of the split takes its place "
                        f"({len(self.bad)} so far)"
                    )

    def _good(self, sample: int) -> int:
        for step in range(self.reader.images):
            if (candidate := (int(sample) + step) % self.reader.images) not in self.bad:
                return candidate
        raise UserError(f"{self.reader.root}: no image of '{self.reader.split}' can be decoded")


class Loader:
    """Batches of a run, made ahead in a thread, from `start` images seen to `stop`.

    Args:
        batch: global batch in images; this rank gets its contiguous slice of each.
        shuffle: of key views (None: every view is of the samples at the rank's own positions).
        prefetch: batches made ahead.
        warn: takes a line about an image that was replaced, or a shard that cannot be read for a while.

    While the reader's `stopping()` is true, whoever waits for the first batch of a step, because a shard
    cannot be read or for more than a second, gets Interrupted: nothing of that step was done yet.
    """

    def __init__(
        self,
        reader: Reader,
        plan: Plan,
        images: Images,
        views: list[View],
        *,
        batch: int,
        start: int,
        stop: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        shuffle: Shuffle | None = None,
        prefetch: int = 2,
        warn: Callable[[str], None] = to_stderr,
    ):
        self.reader, self.plan, self.images, self.batch, self.shuffle = reader, plan, images, batch, shuffle
        self.accumulate = accumulate
        self.slices = [rank_slice(batch, rank, world, accumulate, micro) for micro in range(accumulate)]
        # A key view whose samples are the rank's own needs no second decode: it is permuted afterwards.
        block = shuffle.group * shuffle.groups if shuffle else 1
        self.own = all(s.start % block == 0 and s.stop % block == 0 for s in self.slices)
        keys = shuffle.views if shuffle else ()
        sources = [int(number in keys and not self.own) for number in range(len(views))]
        micro = batch // world // accumulate
        self.make = ViewMaker(reader, images, views, sources, plan.seed, micro, warn)
        self.given = 0  # batches, of this rank
        self.waited = 0.0  # seconds that the caller has waited for batches
        self._items = Prefetch(
            (self._batch(seen, micro) for seen in range(start, stop, batch) for micro in self.slices),
            prefetch,
            self._give_up,
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        try:
            batch = next(self._items)
        finally:
            self.waited += time.perf_counter() - began
        self.given += 1
        return batch

    def close(self) -> None:
        """Ends the thread, also where it waits for a shard. The reader stays open: it is the caller's."""
        self.make.patience.stop()
        self._items.close()

    def _give_up(self, waited: float) -> bool:
        begun = self.given % len(self.slices) > 0
        return not begun and (self.make.patience.troubled or waited > 1) and self.reader.stopping()

    def _batch(self, seen: int, micro: slice) -> Batch:
        if self.reader.dataset.remote:
            self.reader.ahead(*self.plan.ahead(seen))
        order = np.arange(self.batch)
        keys, mixed = order, None
        if self.shuffle:
            keys = mixed = shuffled(self.plan.seed, seen, self.batch, self.shuffle.group, self.shuffle.groups)
        # Draws belong to a sample's place in the run; where its view is put is another matter.
        held = [order[micro], keys[micro]] if any(self.make.sources) else [order[micro]]
        ids = self.plan.ids(seen, self.batch)
        positions = [seen + held[source] for source in self.make.sources]
        views, used = self.make([ids[places] for places in held], positions)
        all_ids = [used[source] for source in self.make.sources]
        if self.shuffle and self.own:
            slots = keys[micro] - micro.start
            for number in self.shuffle.views:
                views[number] = views[number][torch.from_numpy(slots).to(views[number].device)]
                all_ids[number], positions[number] = all_ids[number][slots], positions[number][slots]
        label = self.reader.entries(used[0], self.make.patience)["label"]
        label = torch.from_numpy(label.astype(np.int64))
        noise = Noise(self.plan.seed, seen, micro.start, micro.stop - micro.start)
        device = self.images.device
        return Batch(views, np.stack(all_ids), np.stack(positions), label.to(device), seen, noise, mixed)


def in_order(
    reader: Reader, images: Images, ids: np.ndarray, batch: int, warn: Callable[[str], None] = to_stderr
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The plain images of samples and their labels, in the order of `ids`: ([n, 3, H, W], int64 [n]).

    For evaluation: nothing is drawn, an image that cannot be decoded is replaced as in training. Raises
    Interrupted where a shard cannot be read and the reader's `stopping()` is true.
    """
    make = ViewMaker(reader, images, [View()], [0], 0, batch, warn)

    def batches():
        for start in range(0, len(ids), batch):
            part = ids[start : start + batch]
            reader.ahead(part, ids[start + batch : start + AHEAD * batch])
            (view,), (used,) = make([part], [np.arange(len(part))])  # positions: nothing is drawn
            label = reader.entries(used, make.patience)["label"]
            yield view, torch.from_numpy(label.astype(np.int64))

    items = Prefetch(batches(), 2, lambda _: make.patience.troubled and reader.stopping())
    try:
        yield from items
    finally:
        make.patience.stop()
        items.close()


class Prefetch:
    """Runs an iterator in a thread, `depth` items ahead; errors come out where the item would have.
    Whoever waits for an item, when `give_up(seconds waited)` becomes true, gets Interrupted.
    """

    END = object()

    def __init__(self, items: Iterator, depth: int, give_up: Callable[[float], bool] = lambda _: False):
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._give_up = give_up
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), name="prefetch", daemon=True)
        self._thread.start()

    def _run(self, items: Iterator) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
            self._put(self.END)
        except BaseException as error:
            self._put(error)

    def _put(self, item) -> bool:
        while not self._closing.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator:
        return self

    def __next__(self):
        if self._closing.is_set():
            raise StopIteration
        began = time.monotonic()
        while True:
            try:
                item = self._queue.get(timeout=0.1)
                break
            except queue.Empty:
                if self._give_up(time.monotonic() - began):
                    raise Interrupted from None
        if item is self.END or isinstance(item, BaseException):
            self._queue.put(item)  # asked again, it answers the same
            raise StopIteration if item is self.END else item
        return item

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._give_up = lambda _: False  # in a circle with its owner, that would live on with DALI's threads
