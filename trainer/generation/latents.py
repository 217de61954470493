"""Latents of a frozen run as training samples: all training images and their mirror images, encoded once.

They lie in the folder of the run that encodes, latents/NAME, where NAME is a digest of all that they are a
function of: the checkpoint, the data set, the split, the size of an image. Files are float32 matrices, a row
an image, and are mapped into memory. Beside them, in NAME.codec, the checkpoint is kept, which alone makes
images of what is drawn: the run that encodes may go on, and prune its own.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import cannot_write, file_digest, replace_text
from data_pipelines.common.locks import close_locked, open_locked
from data_pipelines.rows import Stacked, Table
from trainer.distributed import collectives

FOLDER, RECORD = "latents", "latents.json"
PLACE = "from="  # the key that names another folder
NAMED = 16  # digits of the digest that name the folder
CHUNK = 4096  # rows whose moments are in memory at a time
PARTS = ("y", "w", "mirrored y", "mirrored w")  # in the order of their files


@dataclass(frozen=True)
class Latents:
    """y and w of every training image, and behind them those of its mirror image, where these are samples.

    Attributes:
        tables: y and w by name, float32 [N or 2 N, ...] in the shapes of a sample.
        digest: of all that they are a function of.
    """

    tables: Mapping[str, Stacked]
    digest: str


def digest_of(key: Mapping[str, str | int]) -> str:
    """A name for latents that are a function of these values."""
    return hashlib.sha256(json.dumps(dict(sorted(key.items()))).encode()).hexdigest()


def latents_folder(run: Path, digest: str) -> Path:
    """Where the latents of this digest lie, or would."""
    return run / FOLDER / digest[:NAMED]


def codec_folder(run: Path, digest: str) -> Path:
    """Where the checkpoint that made them is kept; not in their folder, which goes when they are damaged."""
    return run / FOLDER / f"{digest[:NAMED]}.codec"


def stored_bytes(shapes: Mapping[str, tuple[int, ...]], images: int) -> int:
    """Bytes of the files of so many images, and of their mirror images."""
    row = sum(math.prod(shapes[name[-1]]) for name in PARTS)
    return np.dtype(np.float32).itemsize * images * row


def open_latents(
    run: Path,
    key: Mapping[str, str | int],
    shapes: Mapping[str, tuple[int, ...]],
    images: int,
    mirrored: bool,
    write: Callable[[Path], object],
) -> Latents:
    """The latents of a run's training images; collective, encoded where they are not there yet.

    Args:
        run: the folder of the run that encodes.
        key: what they are a function of.
        shapes: of y and w, [d] of a vector or [C, H, W] of a map.
        images: how many are encoded.
        mirrored: whether those of mirror images are rows too; the files have them.
        write: writes this rank's rows of all `PARTS` into the files 0, 1, … of a folder that it makes.

    Raises:
        SharedError: on every rank, where one cannot write the files, or there is no room for them.
    """
    digest = digest_of(key)
    folder = latents_folder(run, digest)
    if not collectives.run_on_main(lambda: _is_whole(folder, key)):
        with one_run_at_a_time(folder):
            if not collectives.run_on_main(lambda: _is_whole(folder, key)):  # another has encoded meanwhile
                _encode(folder, key, write, 2 * images * sum(math.prod(shape) for shape in shapes.values()))
    files = [np.memmap(folder / str(number), np.float32, "r") for number in range(len(PARTS))]
    rows = [file.reshape(images, *shapes[name[-1]]) for file, name in zip(files, PARTS, strict=True)]
    collectives.barrier()  # everybody has mapped the files
    y, w = (Stacked(rows[part :: 2 if mirrored else len(PARTS)]) for part in (0, 1))
    return Latents({"y": y, "w": w}, digest)


def _is_whole(folder: Path, key: Mapping[str, str | int]) -> bool:
    """Whether the latents lie there, undamaged."""
    try:
        record = json.loads((folder / RECORD).read_text())
        files = {str(number): file_digest(folder / str(number)) for number in range(len(PARTS))}
        return record == {"of": dict(key), "files": files}
    except (OSError, ValueError):
        return False


@contextmanager
def one_run_at_a_time(folder: Path) -> Iterator[None]:
    """Waits while another run writes the latents of this folder; collective. Raises SharedError."""
    locks: list[int | None] = []

    def wait() -> None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            locks.append(open_locked(folder.with_name(f"{folder.name}.lock"), wait=math.inf))
        except OSError as error:
            raise cannot_write(folder, error, PLACE) from None

    collectives.run_on_main(wait)
    try:
        yield
    finally:
        for lock in locks:
            assert lock is not None  # it waited
            close_locked(lock)


def _encode(
    folder: Path, key: Mapping[str, str | int], write: Callable[[Path], object], numbers: int
) -> None:
    """Encodes so many numbers on all ranks, and puts the whole folder into its place."""
    begun = folder.with_name(f"{folder.name}.writing")
    collectives.run_on_main(lambda: _prepare(begun, 4 * numbers))
    try:
        collectives.run_on_all(lambda: write(begun))
        collectives.run_on_main(lambda: _finish(begun, folder, key))
    finally:
        if collectives.rank() == 0:
            shutil.rmtree(begun, ignore_errors=True)


def _prepare(begun: Path, needed: int) -> None:
    """Removes what a killed run has left. Raises UserError: there is no room for so many bytes."""
    shutil.rmtree(begun, ignore_errors=True)
    if needed > (left := shutil.disk_usage(begun.parent).free):
        raise UserError(
            f"the latents of all training images take {needed / 1e9:.3g} GB, and {begun.parent} has "
            f"{left / 1e9:.3g} GB left; make room there"
        )


def _finish(begun: Path, folder: Path, key: Mapping[str, str | int]) -> None:
    try:
        files = {str(number): file_digest(begun / str(number)) for number in range(len(PARTS))}
        replace_text(begun / RECORD, json.dumps({"of": dict(key), "files": files}, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(begun, folder)
    except OSError as error:
        raise cannot_write(folder, error, PLACE) from None


# ---- statistics ------------------------------------------------------------------------------------


def map_moments(table: Table, by: str) -> tuple[Tensor, Tensor]:
    """Mean and variance of maps [N, C, H, W], float64, broadcast over them.

    Args:
        by: "channel" for [C, 1, 1], "position" for [C, H, W].
    """
    mean, variance = position_moments(table)
    if by == "position":
        return mean, variance
    of_channel = mean.mean((1, 2), keepdim=True)
    return of_channel, (variance + (mean - of_channel).square()).mean((1, 2), keepdim=True)


def position_moments(table: Table) -> tuple[Tensor, Tensor]:
    """Mean and variance of each number of the rows, float64 [...], in two passes."""
    count = len(table)
    mean = sum(_rows(table, at).sum(0) for at in range(0, count, CHUNK)) / count
    assert isinstance(mean, Tensor)
    squares = sum((_rows(table, at) - mean).square().sum(0) for at in range(0, count, CHUNK))
    assert isinstance(squares, Tensor)
    return mean, squares / count


def vector_moments(table: Table) -> tuple[Tensor, Tensor]:
    """Mean [d] and covariance [d, d] of vectors, float64, in two passes."""
    count = len(table)
    mean, _ = position_moments(table)
    scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for at in range(0, count, CHUNK):
        deviations = _rows(table, at) - mean
        scatter += deviations.T @ deviations
    return mean, scatter / count


def _rows(table: Table, start: int) -> Tensor:
    rows = table[np.arange(start, min(start + CHUNK, len(table)))]
    return torch.from_numpy(rows).double()
