"""Features of sources of images: streamed through all ranks, and kept of the training images in a folder.

Numbers of images are cut into fixed pieces. Whichever rank extracts a piece, rank 0 adds the pieces in their
order, so the sums do not depend on the ranks.
"""

import hashlib
import json
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import cannot_write, replace_bytes
from trainer.distributed import collectives
from trainer.evaluation.distances import Moments
from trainer.evaluation.extractors import Extractor
from trainer.evaluation.image_sources import ImageSource, Split
from trainer.exports.tensors import read_safetensors

PIECES = 64  # that images are cut into where a piece is no smaller than a batch
CACHE_KEY = "evaluate.cache="  # that names another folder, for messages


@dataclass(frozen=True)
class FeatureStatistics:
    """What is known of the features of a set of images.

    Attributes:
        moments: of all of them.
        rows: the features [images, d] themselves; None where they were not kept.
    """

    moments: Moments
    rows: Tensor | None

    @property
    def images(self) -> int:
        return self.moments.rows


# ---- streaming -------------------------------------------------------------------------------------


def pieces(count: int, batch: int) -> list[tuple[int, int]]:
    """(first, images) of the pieces that numbers below `count` are cut into, on any ranks alike."""
    size = max(batch, math.ceil(count / PIECES))
    return [(first, min(size, count - first)) for first in range(0, count, size)]


def extracted(source: ImageSource, extractor: Extractor, count: int, batch: int) -> Iterator[Tensor]:
    """The features of the first `count` images, piece after piece [n, d], on rank 0; elsewhere nothing.

    Collective: every rank exhausts it.

    Raises:
        SharedError: on every rank, what went wrong on one.
    """
    cut, world = pieces(count, batch), collectives.world_size()
    for first in range(0, len(cut), world):
        turn = cut[first : first + world]
        yield from _turn(source, extractor, turn, batch)


def _turn(
    source: ImageSource, extractor: Extractor, turn: list[tuple[int, int]], batch: int
) -> Iterator[Tensor]:
    """The features of as many pieces as there are ranks, or fewer: each rank extracts one."""
    rank, local = collectives.rank(), []

    def extract() -> tuple[int, torch.dtype] | None:
        if rank >= len(turn):
            return None
        images = source.images(*turn[rank])
        local.append(torch.cat([extractor(part) for part in images.split(batch)]))
        return local[0].shape[1], local[0].dtype

    shapes = collectives.run_on_all(extract)
    assert shapes[0] is not None  # rank 0 has the first piece
    width, dtype = shapes[0]
    rows = collectives.gather_to_main(local[0] if local else torch.empty(0, width, dtype=dtype))
    if rows is not None:
        yield from rows.split([images for _, images in turn])


def feature_statistics(
    source: ImageSource, extractor: Extractor, count: int, batch: int, keep: bool
) -> FeatureStatistics | None:
    """Moments of the first `count` images' features, on rank 0; None elsewhere. Collective.

    Args:
        batch: images that are extracted at a time.
        keep: whether the features themselves are kept. Fewer rows than a row has numbers always are: they
            take less memory than the covariance.

    Raises:
        SharedError: on every rank, what went wrong on one.
    """
    moments, rows = None, []
    for piece in extracted(source, extractor, count, batch):
        moments = Moments.of(piece) if moments is None else moments + Moments.of(piece)
        if keep or count < piece.shape[1]:
            rows.append(piece)
    return None if moments is None else FeatureStatistics(moments, torch.cat(rows) if rows else None)


# ---- the reference, kept -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """The images that others are compared with: training images.

    Attributes:
        source: of them.
        identity: what they are a function of, as `of_split` makes it.
        folder: where their statistics are kept; None: nowhere.
    """

    source: ImageSource
    identity: dict[str, str | int]
    folder: Path | None = None

    @classmethod
    def of_split(cls, split: Split, folder: Path | None) -> "Reference":
        """The images of a split."""
        reader, options = split.reader, split.options
        identity: dict[str, str | int] = {
            "data": reader.dataset.fingerprint,
            "split": reader.split,
            "ids": hashlib.sha256(split.ids.astype("<i8").tobytes()).hexdigest(),
            "size": options.size,
            "decode": options.decode,
            "normalize": str(options.normalize),  # pixels are rounded after it
        }
        return cls(split, identity, folder)

    def statistics(
        self, extractor: Extractor, count: int, batch: int, keep: bool, say: Callable[[str], None]
    ) -> FeatureStatistics | None:
        """As `feature_statistics`; read where they are kept already, to the same bits. Collective.

        Raises:
            SharedError: on every rank, what went wrong on one, or the folder cannot be written or lacks room.
        """
        count = min(count, self.source.count)
        if self.folder is None:
            return feature_statistics(self.source, extractor, count, batch, keep)
        key = self._key(extractor, count, batch)
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
        read: list[FeatureStatistics] = []

        def look() -> bool:
            if statistics := _read(path, key, keep, say):
                read.append(statistics)
            return bool(read)

        if collectives.run_on_main(look):
            return read[0] if read else None
        widths = collectives.run_on_all(lambda: extractor(self.source.images(0, 1)).shape[1])
        rows = count if keep else min(count, widths[0])
        collectives.run_on_main(lambda: _check_room(path, rows, widths[0]))
        statistics = feature_statistics(self.source, extractor, count, batch, keep)

        def write() -> None:
            assert statistics is not None  # on rank 0
            _write(path, key, statistics)

        collectives.run_on_main(write)
        return statistics

    def _key(self, extractor: Extractor, count: int, batch: int) -> str:
        parts = {**self.identity, "images": count, "batch": batch}
        parts |= {"extractor": extractor.name, "features": extractor.identity}
        return json.dumps(parts, sort_keys=True)


def _read(path: Path, key: str, keep: bool, say: Callable[[str], None]) -> FeatureStatistics | None:
    """The statistics in a file; None where there is none, or it is damaged or lacks the features wanted."""
    if not path.exists():
        return None
    try:
        tensors, metadata = read_safetensors(path)
        if metadata.get("key") == key and metadata.get("sha256") == _digest(tensors):
            moments = Moments(int(tensors["images"]), tensors["mean"], tensors["scatter"])
            if keep and "rows" not in tensors:
                return None
            return FeatureStatistics(moments, tensors.get("rows"))
    except (UserError, KeyError, ValueError):
        pass  # damaged, as where the digest is another
    say(f"warning: {path} is damaged; the reference statistics are made anew")
    return None


def _check_room(path: Path, rows: int, width: int) -> None:
    """Makes the folder, and checks that its disk has room. Raises UserError where it cannot, or has not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise cannot_write(path.parent, error, CACHE_KEY) from error
    needed = 8 * width * (rows + width + 1)
    if needed > free:
        raise UserError(
            f"the reference statistics take up to {needed / 1e9:.3g} GB, and {path.parent} has "
            f"{free / 1e9:.3g} GB left; make room there, or choose another place with `{CACHE_KEY}`"
        )


def _write(path: Path, key: str, statistics: FeatureStatistics) -> None:
    """Writes the file, whole or not at all; others may write the same one. Raises UserError."""
    moments = statistics.moments
    tensors = {"images": torch.tensor(moments.rows), "mean": moments.mean, "scatter": moments.scatter}
    if statistics.rows is not None:
        tensors["rows"] = statistics.rows
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    try:
        # Not `save_file`, which makes files that nobody else may read.
        replace_bytes(path, save(tensors, {"key": key, "sha256": _digest(tensors)}), temporary)
    except OSError as error:
        raise cannot_write(path, error, CACHE_KEY) from error


def _digest(tensors: dict[str, Tensor]) -> str:
    """sha256 (hex) over names, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().reshape(-1).view("uint8").data)
    return digest.hexdigest()
