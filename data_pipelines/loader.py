"""Plan and maker put together: the batches of a run. The whole state is the number of images seen."""

import atexit
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch

from data_pipelines.common.retry import Interrupted
from data_pipelines.common.shortage import shortage_named
from data_pipelines.noise import Noise
from data_pipelines.pinned import on_device
from data_pipelines.plan import BatchShare, Plan, shuffled


@dataclass(frozen=True)
class Batch:
    """A rank's part of a global batch (of one micro-batch of it, where gradients accumulate)."""

    views: list[torch.Tensor]  # each [n, ...]; of images [n, 3, H, W], channels_last
    ids: np.ndarray  # int64 [views, n]: the samples that the views are made of
    positions: np.ndarray  # int64 [views, n]: their places in the run
    label: torch.Tensor  # int64 [n], of the first view's samples, on the CPU: few objectives read it
    images_seen: int  # by all ranks, before this global batch
    noise: Noise
    order: np.ndarray | None = None  # int64 [global batch]: whose key view each slot holds; None: its own


@dataclass(frozen=True)
class Made:
    """What a maker makes of n samples."""

    views: list[torch.Tensor]  # each [n, ...]
    ids: list[np.ndarray]  # int64 [n], one a source: the samples that were used
    labels: torch.Tensor  # int64 [n], of the first source's samples


class Maker(ABC):
    """Sample ids at positions of the run -> tensors and labels.

    The result must be a function of the arguments alone: no rank, thread, batch size or earlier call changes
    it. So a run that resumes, on any number of ranks, sees the same tensors. The loader calls a maker from
    one thread; `interrupted` and `stop` may come from another.
    """

    sources: list[int]
    """For each view, which list of samples it is made from: `BatchShare.sources`."""

    @abstractmethod
    def __call__(self, ids: list[np.ndarray], positions: list[np.ndarray]) -> Made:
        """Makes the views of n samples.

        Args:
            ids: the samples, int64 [n], one array a source.
            positions: their places in the run, int64 [n], one array a view. Random draws belong to these.
        """

    def ahead(self, now: np.ndarray, soon: np.ndarray) -> None:
        """Announces what is read now and next: of each shard, in their order, one sample id or more."""
        return

    def interrupted(self, waited: float = 0.0) -> bool:
        """Whether the caller, who has waited for a batch for `waited` seconds, should stop waiting.

        The caller then gets Interrupted. Never, where nothing is read that may fail for a while.
        """
        return False

    def stop(self) -> None:
        """Ends all waiting, at once and for good. Called from another thread."""
        return


class Loader:
    """Batches of a run, made ahead in a thread, from `start` images seen to `stop`.

    Args:
        maker: makes the tensors; its `sources` are those of the share.
        plan: the order of samples.
        share: which places of each global batch this rank's micro-batches hold.
        prefetch: batches made ahead.

    While the maker is `interrupted`, whoever waits for the first micro-batch of a step gets Interrupted:
    nothing of that step was done yet. Within a step the wait goes on.

    Raises:
        ValueError: the maker's sources are not those of the share.
    """

    def __init__(
        self, maker: Maker, plan: Plan, share: BatchShare, *, start: int, stop: int, prefetch: int = 2
    ):
        if maker.sources != (sources := share.sources(len(maker.sources))):
            raise ValueError(f"the maker has sources {maker.sources}, the share of the batch needs {sources}")
        self.view_maker, self.plan, self.share = maker, plan, share
        self.batches_given = 0  # micro-batches, of this rank
        self.waited = 0.0  # seconds that the caller has waited for batches
        self._items = Prefetch(
            (self._batch(seen, micro) for seen in range(start, stop, share.batch) for micro in share.slices),
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
        self.batches_given += 1
        return batch

    def close(self) -> None:
        """Ends the thread, also where it waits for a shard. A reader stays open: it is the caller's."""
        self.view_maker.stop()
        self._items.close()

    def _give_up(self, waited: float) -> bool:
        within_step = self.batches_given % self.share.accumulate > 0
        return not within_step and self.view_maker.interrupted(waited)

    def _batch(self, seen: int, micro: slice) -> Batch:
        share, plan, maker = self.share, self.plan, self.view_maker
        places = np.arange(share.batch)
        keys, order = places, None
        if share.shuffle:
            keys = order = shuffled(plan.seed, seen, share.batch, share.shuffle.group, share.shuffle.groups)
        read = np.concatenate([kind[part] for kind in (places, keys) for part in share.slices])
        maker.ahead(*plan.ahead(seen, read))
        # Draws belong to a sample's place in the run, wherever its view is put.
        by_source = [places[micro], keys[micro]] if any(maker.sources) else [places[micro]]
        ids = plan.ids(seen, share.batch)
        positions = [seen + by_source[source] for source in maker.sources]
        made = maker([ids[part] for part in by_source], positions)
        views, view_ids = list(made.views), [made.ids[source] for source in maker.sources]
        if share.shuffle and share.keys_are_local:
            slots = keys[micro] - micro.start
            for number in share.shuffle.views:
                views[number] = views[number][on_device(slots, views[number].device)]
                view_ids[number], positions[number] = view_ids[number][slots], positions[number][slots]
        noise = Noise(plan.seed, seen, micro.start, micro.stop - micro.start)
        return Batch(views, np.stack(view_ids), np.stack(positions), made.labels, seen, noise, order)


Item = TypeVar("Item")
EXIT_SECONDS = 10.0  # that a process which exits waits for a thread, which may wait for a shard


class Prefetch(Generic[Item]):
    """Runs an iterator in a thread, `depth` items ahead; errors come out where the item would have.

    Args:
        items: the iterator.
        depth: items made ahead.
        give_up: receives the seconds that the consumer has waited for an item; where it returns true, the
            consumer gets Interrupted.
    """

    END = StopIteration()

    def __init__(self, items: Iterator[Item], depth: int, give_up: Callable[[float], bool] = lambda _: False):
        self._queue: queue.Queue[Item | BaseException] = queue.Queue(maxsize=depth)
        self._give_up = give_up
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), name="prefetch", daemon=True)
        with shortage_named("making batches ahead"):
            self._thread.start()
        # Whoever exits without closing: a thread inside DALI while Python ends would abort the process.
        atexit.register(self._end)

    def _run(self, items: Iterator[Item]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
            self._put(self.END)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Item | BaseException) -> bool:
        while not self._closing.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
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
        if isinstance(item, BaseException):
            self._queue.put(item)  # the next call ends in the same way
            raise StopIteration if item is self.END else item
        return item

    def close(self) -> None:
        """Ends the thread. A second call does nothing."""
        atexit.unregister(self._end)
        self._end(None)
        self._give_up = lambda _: False  # a reference cycle with its owner would keep DALI's threads alive

    def _end(self, seconds: float | None = EXIT_SECONDS) -> None:
        self._closing.set()
        self._thread.join(seconds)
