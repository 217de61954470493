"""Pages of images, as PNG files: the views of a run, and the nearest neighbours of test images.

Images are arrays (or CPU tensors), uint8 or float in [0, 1], [H, W], [H, W, C] or [C, H, W] with C of 1 or 3.
Each is drawn by matplotlib's Agg on a new figure: no window, no pyplot, no state shared with the caller.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from trainer.evaluation.figures.charts import DPI, INK, save
from trainer.evaluation.figures.text import cut, legible
from trainer.evaluation.figures.text import style as text_style

SAME, OTHER, QUERY = "#009e73", "#d55e00", "#404040"  # frames; the first two differ for colour-blind eyes too
UNKNOWN = "#c8c8c8"  # the frame where a label is missing
FRAME, GAP, CAPTION, MARGIN, HEADER = 4, 14, 16, 24, 84  # pixels
LINE = 8  # images in a line of the page of views
LETTERS = 8  # pixels, of a letter of a caption: what is longer than its tile is cut


def neighbours(
    path: Path | str,
    query_images: Sequence,
    neighbour_images: Sequence[Sequence],
    query_labels: Sequence[int],
    neighbour_labels: Sequence[Sequence[int]],
    classes: Sequence[str],
) -> None:
    """A row for each test image [Q]: it, then its nearest training images [Q][K], framed by class.

    A label of -1 is none: such a pair has no colour, such an image no caption.
    """
    queries = [pixels(image) for image in query_images]
    rows = [[pixels(image) for image in row] for row in neighbour_images]
    labels, row_labels = np.asarray(query_labels)[:, None], np.asarray(neighbour_labels)
    columns, tile = len(rows[0]), tile_size(queries[0])
    step, aside = tile + 2 * FRAME + GAP, 2 * GAP  # the test image stands a little apart
    known, same = (labels >= 0) & (row_labels >= 0), labels == row_labels
    caption = CAPTION if (labels >= 0).any() or (row_labels >= 0).any() else 0
    figure, axes = page(
        max(2 * MARGIN + (columns + 1) * step - GAP + aside, 640),
        HEADER + len(rows) * (step + caption) + MARGIN - GAP,
    )
    write(axes, MARGIN, 28, "Nearest training images by y", size=15, weight="bold")
    if known.any():
        write(axes, MARGIN, 52, f"{(known & same).sum()} of {known.sum()} share the class of the test image:")
        _legend(axes, MARGIN + 350, 52, {"same class": SAME, "other class": OTHER})
    else:
        write(
            axes, MARGIN, 52, "a test image at the left, the nearest training images beside it, nearest first"
        )
    for r, (query, row) in enumerate(zip(queries, rows, strict=True)):
        top = HEADER + r * (step + caption)
        _framed(axes, MARGIN, top, query, QUERY, _name(labels[r, 0], classes), weight="bold")
        for c, image in enumerate(row):
            colour = (SAME if same[r, c] else OTHER) if known[r, c] else UNKNOWN
            left = MARGIN + aside + (c + 1) * step
            _framed(axes, left, top, image, colour, _name(row_labels[r, c], classes))
    save(figure, path)


def views(path: Path | str, view_images: Sequence[Sequence], captions: Sequence[str]) -> None:
    """What the encoder sees: `view_images[v][i]` is view v of image i; its views stand side by side.

    `captions[v]` stands above the first line, over view v of each image.
    """
    images = [[pixels(image) for image in view] for view in view_images]
    count, across = len(images[0]), max(1, LINE // len(images))  # images; images in a line
    across = min(across, count)
    lines, (height, width) = math.ceil(count / across), images[0][0].shape[:2]
    tile, several = tile_size(images[0][0]), len(images) > 1
    step, block = tile + 6, len(images) * (tile + 6) + (GAP if several else 0)
    head = HEADER + (4 if several else 0)
    figure, axes = page(max(2 * MARGIN + across * block, 420), head + lines * (step + 6) + MARGIN)
    subtitle = ", ".join(captions) + (" of each image, side by side" if several else "")
    write(axes, MARGIN, 28, "What the encoder sees", size=15, weight="bold")
    write(axes, MARGIN, 52, f"{subtitle}; {width} × {height} pixels")
    for v, view in enumerate(images):
        for i, image in enumerate(view):
            left = MARGIN + i % across * block + v * step
            if several and i < across:
                write(axes, left + tile / 2, head - 9, _cut(captions[v], tile), size=9, ha="center")
            place(axes, left, head + i // across * (step + 6), tile, image)
    save(figure, path)


def pixels(image: ArrayLike) -> np.ndarray:
    """uint8 [H, W, 3]. Raises ValueError for another shape, or floats that are not in [0, 1]."""
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3 and array.shape[-1] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[-1] not in (1, 3):
        raise ValueError(
            f"an image must be [H, W], [H, W, C] or [C, H, W] with C of 1 or 3, got {np.shape(image)}"
        )
    if array.dtype != np.uint8:
        if not (array.min() >= -1e-3 and array.max() <= 1 + 1e-3):
            raise ValueError(f"a float image must lie in [0, 1], got [{array.min():.3g}, {array.max():.3g}]")
        array = (array * 255).round().clip(0, 255).astype(np.uint8)
    return np.broadcast_to(array, (*array.shape[:2], 3))


def tile_size(image: np.ndarray) -> int:
    """Side of a tile, pixels: a whole multiple of a small image (crisp), at most 128 for a large one."""
    side = max(image.shape[:2])
    return min(128, side * max(1, round(96 / side)))


def _name(label: int, classes: Sequence[str]) -> str:
    return legible(classes[label]) if label >= 0 else ""


def _cut(caption: str, width: int) -> str:
    """What of a caption fits into `width` pixels; ImageNet's names are long."""
    return cut(caption, max(width // LETTERS, 2))


def page(width: int, height: int) -> tuple[Figure, Axes]:
    """A figure whose coordinates are its pixels, counted from the upper left corner."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return figure, axes


def write(axes: Axes, x: float, y: float, text: str, size: float = 10.5, **style: Any) -> None:
    """A line of text, its middle at the height y."""
    axes.text(x, y, text, fontsize=size, color=INK, va="center", **(style | text_style(text)))


def _legend(axes: Axes, x: float, y: float, entries: dict[str, str]) -> None:
    for label, colour in entries.items():
        axes.add_patch(Rectangle((x, y - 7), 14, 14, facecolor=colour, linewidth=0))
        write(axes, x + 20, y, label)
        x += 120


def _framed(axes: Axes, x: int, y: int, image: np.ndarray, colour: str, caption: str, **style: Any) -> None:
    tile = tile_size(image)
    side = tile + 2 * FRAME
    axes.add_patch(Rectangle((x, y), side, side, facecolor=colour, linewidth=0, antialiased=False))
    place(axes, x + FRAME, y + FRAME, tile, image)
    middle = x + side / 2, y + side + CAPTION / 2 + 1
    write(axes, *middle, _cut(caption, side), size=9, ha="center", **style)


def place(axes: Axes, x: int, y: int, tile: int, image: np.ndarray) -> None:
    """An image with its upper left corner at (x, y), `tile` pixels a side; enlarged without smoothing."""
    crisp = "nearest" if max(image.shape[:2]) <= tile else "antialiased"
    axes.imshow(image, extent=(x, x + tile, y + tile, y), aspect="auto", interpolation=crisp, zorder=2)
