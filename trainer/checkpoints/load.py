"""Checkpoints in a folder: a list, the newest that is undamaged, its tensors on any number of ranks."""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from data_pipelines.common.errors import UserError
from trainer.checkpoints.format import DTYPES, Damaged, part_names, read_manifest, read_rows, verify
from trainer.distributed.rows import row_count, row_range

NAME = re.compile(r"images-([0-9]{12,})")  # of `folder_name`; twelve digits: a run may be called images-5


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is complete and undamaged."""

    path: Path
    images: int
    manifest: dict


def visible(folder: Path) -> list[tuple[int, Path]]:
    """(images, folder) of the visible checkpoints, fewest images first; none where there is no such folder.

    Raises OSError where the folder cannot be read: a run would start anew, as if it had none.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    named = [(match, Path(folder) / match[0]) for name in names if (match := NAME.fullmatch(name))]
    return sorted((int(match[1]), path) for match, path in named if path.is_dir())


def kept(folder: Path) -> list[int]:
    """Images seen at each visible checkpoint, damaged or not, fewest first."""
    return [images for images, _ in visible(folder)]


def newest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint of most images that is complete and whose digests hold; None if there is none.

    `warn` is called with a line about each damaged one of more images.
    """
    checkpoint, damaged = None, []
    for images, path in reversed(visible(folder)):
        try:
            checkpoint = Checkpoint(path, images, verify(path))
            break
        except Damaged as why:
            damaged.append((path, why))
    instead = f"using {checkpoint.path.name}" if checkpoint else "there is no undamaged one before it"
    for path, damage in damaged:
        warn(f"checkpoint {path} is damaged ({damage}); {instead}")
    return checkpoint


def load(checkpoint: Checkpoint | Path, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """Whole tensors on the host, bit for bit, from however many parts: all, or those named.

    Digests are not checked again (`newest` did). Raises UserError for a damaged checkpoint or unknown name.
    """
    return load_rows(checkpoint, 0, 1, names)


def load_rows(
    checkpoint: Checkpoint | Path, rank: int, world: int, names: Iterable[str] | None = None
) -> dict[str, torch.Tensor]:
    """Like `load`, but of each tensor [n, ...] the rows of `row_range(n, rank, world)`; 0-dim ones whole."""
    path = checkpoint.path if isinstance(checkpoint, Checkpoint) else Path(checkpoint)
    try:
        manifest = read_manifest(path)
        targets = {}
        for name in manifest["tensors"] if names is None else names:
            if name not in manifest["tensors"]:
                raise UserError(f"checkpoint {path} holds no tensor {name!r}: it is another model's")
            shape, dtype = (manifest["tensors"][name][key] for key in ("shape", "dtype"))
            start, stop = row_range(shape[0], rank, world) if shape else (0, 1)
            rows = [stop - start, *shape[1:]] if shape else []
            targets[name] = (start, torch.empty(rows, dtype=DTYPES[dtype]))
        missing_rows = {name: row_count(tensor.shape) for name, (_, tensor) in targets.items()}
        for part in part_names(manifest):
            for name, count in read_rows(path / part, targets).items():
                missing_rows[name] -= count
        if any(missing_rows.values()):
            raise Damaged(
                f"rows of {next(n for n in missing_rows if missing_rows[n])!r} are in none of its parts"
            )
    except (Damaged, OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as why:
        raise UserError(
            f"checkpoint {path} is damaged ({why}); remove that folder to use the one before it"
        ) from why
    return {name: tensor for name, (_, tensor) in targets.items()}
