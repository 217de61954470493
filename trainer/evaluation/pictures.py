"""Images of a data set as pictures, and where a run's pictures go."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_pipelines.dali import in_order
from data_pipelines.image_options import ImageOptions
from data_pipelines.reader import Reader
from data_pipelines.views import Normalize
from trainer.recipe.schema import Data

DECODED = 64  # images at a time


@contextmanager
def drawing(folder: Path, name: str) -> Iterator[Path]:
    """The path of a picture in `folder`/figures; one that cannot be drawn costs a line on the screen."""
    path = folder / "figures" / name
    with suppress(OSError):  # writing the picture will say what is wrong
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    except Exception as error:
        print(f"warning: {path} was not drawn: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def pictures(reader: Reader, ids: np.ndarray, data: Data, size: int | None = None) -> list[np.ndarray]:
    """Samples as float [H, W, 3] in [0, 1], `size` pixels a side (None: as the encoder sees them)."""
    options = ImageOptions(size or data.size, data.normalize, 1, torch.device("cpu"))
    batches = in_order(reader, options, np.asarray(ids), min(len(ids), DECODED))
    return [as_picture(view, data.normalize) for batch, _ in batches for view in batch]


def as_picture(view: Tensor, normalize: Normalize) -> np.ndarray:
    """A normalised view [3, H, W] as float [H, W, 3] in [0, 1]."""
    mean, std = torch.tensor(normalize.mean), torch.tensor(normalize.std)
    return (view.float().cpu().permute(1, 2, 0) * std + mean).clamp(0, 1).numpy()


def as_pictures(pixels: Tensor) -> list[np.ndarray]:
    """Pixels [n, 3, H, W] as pictures [H, W, 3], clamped to [0, 1]."""
    return list(pixels.clamp(0, 1).float().cpu().permute(0, 2, 3, 1).numpy())
