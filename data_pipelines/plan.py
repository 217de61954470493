"""(seed, images seen) -> which samples come next, for every rank. Pure functions.

A run is one endless sequence of sample ids: epoch after epoch without a gap, each a permutation of the data
set. Position p of the run is the p-th image that training sees, whatever the batch size and the number of
ranks. Within an epoch the shards are permuted and read in windows of a few shards; samples are permuted
within a window. A shard of more than `PIECE` images counts as several. So reads stay near each other on disk,
samples mix over a window, and a billion samples take no more memory than one window.

With lanes, each batch has parts that are filled from different shards of the window, so that a node which has
whole parts of every batch reads its own shards alone. The order is a function of seed, batch and lanes,
and of no number of nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_pipelines.common.errors import UserError
from data_pipelines.draws import permutation, stream
from data_pipelines.views import Shuffle

PIECE = 16_384  # images: the ids of a window of 16 take 2 MB; of 16 shards of a million images, 128 MB


@dataclass(frozen=True)
class Lanes:
    """The parts of each batch that are filled from shards of their own, of equal size and in order.

    Args:
        batch: global batch, images.
        count: of lanes, a divisor of the batch.
    """

    batch: int
    count: int

    def of(self, positions: np.ndarray) -> np.ndarray:
        """The lane of each position of the run, or place in a batch, int64."""
        return positions % self.batch // (self.batch // self.count)


class Plan:
    """The order of samples of a run.

    Args:
        seed: of the run.
        shards: images in each shard, in the data set's order; ids count through them.
        window: shards, or pieces of long ones, whose samples are mixed with each other.
        lanes: parts of each batch that are filled from different shards of a window, whose samples are mixed
            within a lane alone; None: the whole batch from all of them.
    """

    def __init__(self, seed: int, shards: list[int], window: int, lanes: Lanes | None = None):
        self.seed, self.lanes = seed, lanes
        self.pieces = pieces(np.asarray(shards, np.int64))
        self.first = np.concatenate([[0], np.cumsum(self.pieces)])  # id of each piece's first sample
        self.images = int(self.first[-1])
        self.window = window
        # Batches run through windows in order: the current one and, at its edge, the next.
        self._epoch = lru_cache(maxsize=2)(self._epoch_order)
        self._window = lru_cache(maxsize=2)(self._window_ids)
        self._lane_sizes = lru_cache(maxsize=4)(self._images_of_lanes)

    def ids(self, start: int, count: int) -> np.ndarray:
        """Ids of the samples at positions start .. start + count - 1 of the run, int64 [count]."""
        parts = [np.empty(0, np.int64)]
        while count > 0:
            epoch, number = self._window_at(start)
            ids = self._window(epoch, number)
            offset = start - self._start(epoch, number)
            parts.append(ids[offset : offset + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)

    def ahead(self, position: int, places: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """What is read at a position and soon after: the windows that follow each other from there.

        Args:
            places: those of a batch that are read; None: all.

        Returns:
            The id of each piece's first image, int64, of the position's window and of the next, in the order
            of the plan; of pieces that have none of these places, no id. A piece is a shard, or a part of a
            long one.
        """
        epoch, number = self._window_at(position)
        _, ends = self._epoch(epoch)
        after = (epoch, number + 1) if number + 1 < len(ends) else (epoch + 1, 0)
        lanes = None if self.lanes is None or places is None else np.unique(self.lanes.of(places))
        now, soon = (self._read_by(window, lanes) for window in ((epoch, number), after))
        return self.first[now], self.first[soon]

    def _window_at(self, position: int) -> tuple[int, int]:
        """The epoch of a position, and the number of its window there."""
        epoch, place = divmod(position, self.images)
        return epoch, int(np.searchsorted(self._epoch(epoch)[1], place, side="right"))

    def _start(self, epoch: int, number: int) -> int:
        """The position at which a window begins."""
        return epoch * self.images + (int(self._epoch(epoch)[1][number - 1]) if number else 0)

    def _members(self, epoch: int, number: int) -> np.ndarray:
        """The pieces of a window, in the order of the plan."""
        return self._epoch(epoch)[0][number * self.window : (number + 1) * self.window]

    def _read_by(self, window: tuple[int, int], lanes: np.ndarray | None) -> np.ndarray:
        """The pieces of a window that some lanes read; None: all."""
        members = self._members(*window)
        if lanes is None:
            return members
        sizes, chunks = self.pieces[members], self._lane_sizes(*window)
        ends, chunk_ends = np.cumsum(sizes), np.cumsum(chunks)
        starts, chunk_starts = ends - sizes, chunk_ends - chunks
        overlaps = (starts[:, None] < chunk_ends[lanes]) & (chunk_starts[lanes] < ends[:, None])
        return members[overlaps.any(1)]

    def _epoch_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the pieces in an epoch, and the position in it at which each window ends."""
        order = permutation(len(self.pieces), self.seed, "shards", epoch)
        ends = np.cumsum(self.pieces[order])
        last = np.minimum(np.arange(self.window, len(order) + self.window, self.window), len(order)) - 1
        return order, ends[last]

    def _window_ids(self, epoch: int, number: int) -> np.ndarray:
        """The ids of one window of an epoch, in the order in which they are seen."""
        members = self._members(epoch, number)
        ids = np.concatenate([np.arange(self.first[p], self.first[p + 1]) for p in members])
        if self.lanes is None:
            return ids[permutation(len(ids), self.seed, "samples", epoch, number)]
        mixed, lanes = np.empty_like(ids), self._lanes_of(epoch, number)
        chunks = np.split(ids, np.cumsum(self._lane_sizes(epoch, number))[:-1])
        for lane, chunk in enumerate(chunks):
            order = permutation(len(chunk), self.seed, "samples", epoch, number, lane)
            mixed[lanes == lane] = chunk[order]
        return mixed

    def _lanes_of(self, epoch: int, number: int) -> np.ndarray:
        """The lane of each position of a window, int64 [images of the window]."""
        assert self.lanes is not None  # where it is called
        start, size = self._start(epoch, number), int(self.pieces[self._members(epoch, number)].sum())
        return self.lanes.of(np.arange(start, start + size))

    def _images_of_lanes(self, epoch: int, number: int) -> np.ndarray:
        """The images of a window that each lane has, int64 [lanes]: within a batch of equally many."""
        assert self.lanes is not None  # where it is called
        return np.bincount(self._lanes_of(epoch, number), minlength=self.lanes.count)


def pieces(shards: np.ndarray) -> np.ndarray:
    """Images in each piece when shards are cut evenly into as few of at most `PIECE` as will do, int64."""
    counts = np.maximum(-(-shards // PIECE), 1)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # within its shard
    return np.repeat(shards // counts, counts) + (number < np.repeat(shards % counts, counts))


def sample(seed: int, purpose: str, images: int, count: int) -> np.ndarray:
    """A random choice of `count` of `images` ids (all of them where they are fewer), int64, ascending.

    Its memory is proportional to `count`, not to `images`.
    """
    if 2 * count >= images:
        return np.sort(permutation(images, seed, purpose)[:count])
    bits, drawn = stream(seed, purpose), np.empty(0, np.uint64)
    while True:
        drawn = np.concatenate([drawn, bits.random_raw(2 * count) % np.uint64(images)])
        _, first = np.unique(drawn, return_index=True)
        if len(first) >= count:
            return np.sort(drawn[np.sort(first)[:count]].astype(np.int64))


def shuffled(seed: int, images_seen: int, batch: int, group: int, groups: int) -> np.ndarray:
    """The places in the global batch that the slots of the key view hold, int64 [batch].

    ShuffleBN without moving images: within each block of `groups` groups of `group` images, a key
    group takes equally many images of every query group (to within one, where they do not divide),
    so that group statistics do not reveal the positives (He et al., arXiv 1911.05722, section 3.3).
    Raises ValueError where the batch is not made of whole blocks.
    """
    block = group * groups
    if batch % block:
        raise ValueError(f"a batch of {batch} images is not made of whole blocks of {groups} x {group}")
    places = np.empty(batch, np.int64)
    for number in range(batch // block):
        key_groups: list[list[np.ndarray]] = [[] for _ in range(groups)]
        for query in range(groups):
            order = permutation(group, seed, "key groups", images_seen, number, query)
            for key in range(groups):
                key_groups[(key + query) % groups].append(query * group + order[key::groups])
        slots = np.concatenate([part for group_parts in key_groups for part in group_parts])
        places[number * block : (number + 1) * block] = number * block + slots
    return places


def rank_slice(batch: int, rank: int, world: int, accumulate: int = 1, micro: int = 0) -> slice:
    """The places in the global batch of micro-batch `micro` of a rank: ranks take contiguous slices."""
    images = batch // world // accumulate
    start = rank * (batch // world) + micro * images
    return slice(start, start + images)


@dataclass(frozen=True)
class BatchShare:
    """Which places of each global batch the micro-batches of one rank hold.

    Args:
        batch: global batch, images; it divides by world_size * accumulate (`check_division`).
        rank: of this process, of `world_size`.
        accumulate: micro-batches a step.
        shuffle: of key views (None: every view is of the samples at the rank's own positions).
    """

    batch: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1
    shuffle: Shuffle | None = None

    @property
    def micro_batch(self) -> int:
        """Images of one micro-batch of this rank."""
        return self.batch // self.world_size // self.accumulate

    @property
    def slices(self) -> list[slice]:
        """The places in the global batch, one contiguous slice a micro-batch."""
        return [
            rank_slice(self.batch, self.rank, self.world_size, self.accumulate, micro)
            for micro in range(self.accumulate)
        ]

    @property
    def keys_are_local(self) -> bool:
        """Whether whole shuffle blocks lie in every slice.

        The samples of a key view are then the slice's own: the view needs no second decoding, it is permuted
        afterwards.
        """
        block = self.shuffle.group * self.shuffle.groups if self.shuffle else 1
        return all(part.start % block == 0 and part.stop % block == 0 for part in self.slices)

    def sources(self, views: int) -> list[int]:
        """For each of `views` views, which list of samples it is made from.

        0: those at the rank's own positions; 1: those of the shuffled key slots.
        """
        keys = () if self.shuffle is None or self.keys_are_local else self.shuffle.views
        return [int(number in keys) for number in range(views)]


def check_division(
    batch: int, world: int, accumulate: int, unit: int, what: str, others: Sequence[str] = ()
) -> None:
    """Checks that a global batch divides over ranks and micro-batches in whole units.

    Args:
        unit: images that must stay together: a group, or a block of groups.
        what: the recipe's name for it, for the message.
        others: changes that work too, such as `groups.norm=8`.

    Raises:
        UserError: it does not. The message names `others`, and the numbers of processes and the batch sizes
            that work.
    """
    if batch % (world * accumulate * unit) == 0:
        return
    pieces = batch // (accumulate * unit) if batch % (accumulate * unit) == 0 else 0
    worlds = [str(w) for w in range(1, min(pieces, 1024) + 1) if pieces % w == 0]
    step = world * accumulate * unit
    near = sorted({max(step, batch // step * step), (batch // step + 1) * step})
    ways = [*others, *([f"--num_processes {', '.join(worlds)}"] if worlds else [])]
    ways += [f"batch={size}" for size in near]
    split = f"{world} process{'es' if world > 1 else ''}" + (f" x accumulate={accumulate}" * (accumulate > 1))
    raise UserError(
        f"batch={batch} does not divide over {split} in whole units of {unit} images ({what}); "
        f"what works: {' or '.join(ways)}"
    )
