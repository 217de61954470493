"""Features of frozen encoders: encoded once by all ranks, kept in files that every rank maps.

A cache is a folder of float32 matrices, written and read by one evaluation and removed at its end. An
evaluation begins by removing what a killed one has left. The files may be larger than the memory: probes then
read mini-batches from the disk, in random order in every epoch, which is much slower.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_pipelines.common.errors import UserError
from data_pipelines.dali import in_order
from data_pipelines.image_options import ImageOptions
from data_pipelines.plan import sample
from data_pipelines.reader import Reader
from trainer.distributed import collectives

FOLDER = "features"  # of a run's folder, while features are cached
SCAN = 2**16  # rows of an index looked at together
Features = dict[str, Tensor]
Encode = Callable[[Tensor], Features]


@dataclass(frozen=True)
class Examples:
    """Features {name: float32 [N, d]}, labels int64 [N] in [0, classes), and ids int64 [N] of N images."""

    features: Features
    labels: Tensor
    ids: np.ndarray


@dataclass(frozen=True)
class Sample:
    """Images `ids` of a split, as `images` decodes them, `batch` at a time."""

    reader: Reader
    ids: np.ndarray
    images: ImageOptions
    batch: int

    def of_rank(self) -> "Sample":
        """This rank's contiguous slice."""
        return replace(self, ids=np.array_split(self.ids, collectives.world_size())[collectives.rank()])

    def views(self) -> Iterator[Tensor]:
        """Batches of normalised images [n, 3, H, W]."""
        return (view for view, _ in in_order(self.reader, self.images, self.ids, self.batch))


def labelled_ids(reader: Reader) -> np.ndarray:
    """Ids of the samples of a split that have a label (-1: none), in order, int64."""
    return np.concatenate([np.empty(0, np.int64), *_labelled(reader)])


def has_labels(reader: Reader) -> bool:
    """Whether any sample of a split has a label; looks no further than the first."""
    return any(len(ids) for ids in _labelled(reader))


def _labelled(reader: Reader) -> Iterator[np.ndarray]:
    for start in range(0, reader.images, SCAN):
        ids = np.arange(start, min(start + SCAN, reader.images))
        yield ids[reader.entries(ids)["label"] >= 0]


def subset(reader: Reader, count: int, seed: int) -> np.ndarray:
    """A fixed random choice of samples of a split, in the order of their ids."""
    return sample(seed, "subset", reader.images, count)


@torch.no_grad()
def encoded(
    encode: Encode, reader: Reader, ids: np.ndarray, images: ImageOptions, batch: int
) -> Iterator[tuple[Features, Tensor]]:
    """Batch after batch, the features, float32 on the CPU, and labels of the samples `ids`."""
    for view, labels in in_order(reader, images, ids, batch):
        yield {name: rows.float().cpu() for name, rows in encode(view).items()}, labels


def gathered(
    encode: Encode, reader: Reader, ids: np.ndarray, images: ImageOptions, batch: int
) -> tuple[Features, Tensor] | None:
    """Features and labels of the samples `ids` in the memory of rank 0, None elsewhere; all ranks encode."""
    local = np.array_split(ids, collectives.world_size())[collectives.rank()]
    count = len(local)  # where there are fewer images than ranks, a rank without one still needs the widths
    parts = list(encoded(encode, reader, local if count else ids[:1], images, batch))
    labels = collectives.gather_to_main(torch.cat([labels for _, labels in parts])[:count])
    rows = {name: torch.cat([part[name] for part, _ in parts])[:count] for name in parts[0][0]}
    everywhere = {name: collectives.gather_to_main(part) for name, part in rows.items()}
    features = {name: part for name, part in everywhere.items() if part is not None}
    return None if labels is None else (features, labels)


@contextmanager
def cached(
    folder: Path,
    encode: Encode,
    splits: list[tuple[Reader, np.ndarray]],
    images: ImageOptions,
    batch: int,
) -> Iterator[list[Examples]]:
    """The features of samples `ids` of each (reader, ids), in files in `folder`, mapped on every rank.

    Collective: each rank encodes a contiguous slice of the samples and writes its rows. An image that could
    not be decoded and was replaced by one without a label is left out.

    Raises:
        SharedError: on every rank, where one cannot write the files, or there is no room for them.
    """
    collectives.run_on_main(lambda: shutil.rmtree(folder, ignore_errors=True))
    try:
        yield [
            _cache(folder / str(number), encode, reader, ids, images, batch)
            for number, (reader, ids) in enumerate(splits)
        ]
    finally:
        if collectives.rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _cache(
    folder: Path, encode: Encode, reader: Reader, ids: np.ndarray, images: ImageOptions, batch: int
) -> Examples:
    written = collectives.run_on_all(lambda: write_features(folder, encode, reader, ids, images, batch))
    labels = torch.from_numpy(np.concatenate([labels for labels, _ in written]))
    features = {
        name: torch.from_file(str(folder / str(number)), size=len(ids) * width, dtype=torch.float32).view(
            len(ids), width
        )
        for number, (name, width) in enumerate(written[0][1].items())
    }
    collectives.barrier()  # everybody has mapped the files before anybody may remove them
    if (kept := labels >= 0).all():
        return Examples(features, labels, ids)
    return Examples({name: rows[kept] for name, rows in features.items()}, labels[kept], ids[kept.numpy()])


def write_features(
    folder: Path,
    encode: Encode,
    reader: Reader,
    ids: np.ndarray,
    images: ImageOptions,
    batch: int,
    whole_batches: bool = False,
) -> tuple[np.ndarray, dict[str, int]]:
    """Writes this rank's rows of each feature, a file each, named by number in the order of the features.

    Args:
        whole_batches: ranks share batches and not images: rows are equal to the bit on any ranks.

    Returns:
        The labels of its rows, int64, and the width of each feature (none where it has no rows).

    Raises:
        UserError: the files cannot be written, or there is no room for them.
    """
    rows_of_rank = _rows_of_rank(len(ids), batch if whole_batches else 1)
    files: dict[str, FileIO] = {}
    widths: dict[str, int] = {}
    labels = [np.empty(0, np.int64)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            for features, batch_labels in encoded(encode, reader, ids[rows_of_rank], images, batch):
                if not files:
                    widths = {name: rows.shape[1] for name, rows in features.items()}
                    if collectives.rank() == 0:
                        check_room(folder.parent, len(ids), sum(widths.values()))
                    for number, (name, width) in enumerate(widths.items()):
                        handle = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
                        files[name] = opened.enter_context(open(handle, "wb", buffering=0))
                        files[name].seek(int(rows_of_rank[0]) * width * 4)
                for name, rows in features.items():
                    _write_all(files[name], rows.contiguous().numpy().data.cast("B"))
                labels.append(batch_labels.numpy())
    except OSError as error:
        raise UserError(f"cannot write features to {folder}: {error.strerror}; make room there") from error
    return np.concatenate(labels), widths


def _rows_of_rank(count: int, unit: int) -> np.ndarray:
    """This rank's contiguous slice of `count` rows, in whole units; only the last may be a smaller one."""
    units = np.array_split(np.arange(-(-count // unit)), collectives.world_size())[collectives.rank()]
    return np.arange(units[0] * unit, min((units[-1] + 1) * unit, count)) if len(units) else units


def _write_all(file: FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def check_room(folder: Path, images: int, width: int) -> None:
    """Checks that a folder's disk has room for float32 features [images, width].

    Raises:
        UserError: it has not.
    """
    needed, free = images * width * 4, shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the features of {images:,} images to probe take {needed / 1e9:.1f} GB, and {folder} has "
            f"{free / 1e9:.1f} GB left; make room there, or let a new run name a smaller split with "
            "data.labelled or leave the probes out with evaluate.at_end=false"
        )
