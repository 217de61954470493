"""A map of test images: t-SNE of their y in two dimensions, as points and as the images themselves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from trainer.evaluation.figures.charts import INK, PALE, bare, save
from trainer.evaluation.figures.images import pixels
from trainer.evaluation.figures.text import cut, legible, width
from trainer.evaluation.figures.text import style as text_style

FEWEST, MOST = 10, 2000  # images
PERPLEXITY = 30
CELLS = 28  # a side of the map of images
NAMED = 20  # classes at most that a legend names
LONGEST, ACROSS = 24, 160  # columns of a name in the legend, and of a line of names
UNLABELLED = "#9a9a9a"


def embed(y: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE of y [N, d], started from its first two principal components: float [N, 2] in [0, 1].

    N is at least FEWEST, d at least 2. Source: van der Maaten and Hinton 2008 (JMLR 9), by scikit-learn.
    """
    from sklearn.manifold import TSNE  # takes seconds to import, so only where it is used

    if (np.ptp(y, axis=0) == 0).all():  # of an encoder that gives every image the same y
        return np.full((len(y), 2), 0.5)
    perplexity = min(PERPLEXITY, (len(y) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed % 2**32).fit_transform(np.asarray(y))
    low, high = points.min(0), points.max(0)
    return (points - low) / np.maximum(high - low, np.finfo(points.dtype).tiny)


def on_grid(points: np.ndarray) -> dict[tuple[int, int], int]:
    """{(row, column) of a grid of CELLS x CELLS: the point nearest to its middle}, of cells with points.

    `points` [N, 2] are in [0, 1]; row 0 is at the top, where the second coordinate is 1.
    """
    columns, rows = np.minimum((points * CELLS).astype(int), CELLS - 1).T
    away = np.abs(points * CELLS - np.stack([columns, rows], axis=1) - 0.5).max(axis=1)
    cells: dict[tuple[int, int], int] = {}
    for point in np.argsort(-away, kind="stable"):  # the nearest comes last, and stays
        cells[CELLS - 1 - int(rows[point]), int(columns[point])] = int(point)
    return cells


def draw(
    path: Path | str,
    points: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    cells: dict[tuple[int, int], int],
    images: Sequence,
) -> None:
    """Points [N, 2] in [0, 1] coloured by class; beside them `images`, one for each of `cells`, in its order.

    A label of -1 is none. Up to NAMED classes are named in a legend.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12, wspace=0.02)
    figure = Figure(figsize=(14, 7.7), dpi=100, layout=layout)
    figure.suptitle(f"t-SNE of y, {len(points):,} test images", x=0.016, ha="left", weight="bold", color=INK)
    left, right = figure.subplots(1, 2)
    _points(left, points, np.asarray(labels), classes)
    tiles = [pixels(image) for image in images]
    side = max(tiles[0].shape[:2])
    page = np.full((CELLS * side, CELLS * side, 3), 255, np.uint8)
    for (row, column), tile in zip(cells, tiles, strict=True):
        page[row * side :, column * side :][: tile.shape[0], : tile.shape[1]] = tile
    right.imshow(page, extent=(0, 1, 0, 1), interpolation="antialiased")
    for axes in (left, right):
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xticks=[], yticks=[], aspect="equal")
        bare(axes, ("top", "right", "left", "bottom"))
    save(figure, path)


def _points(axes: Axes, points: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
    size = float(np.clip(16_000 / len(points), 8, 40))
    style: dict[str, Any] = {"s": size, "linewidths": 0, "alpha": 0.85}
    unknown = labels < 0
    drawn = []
    if unknown.any():
        drawn.append(("no label", axes.scatter(*points[unknown].T, color=UNLABELLED, **style)))
    present = np.unique(labels[~unknown])
    wheel = matplotlib.colormaps["turbo"](np.linspace(0, 1, len(classes)))
    if len(classes) <= NAMED:
        qualitative = matplotlib.colormaps["tab20" if len(classes) > 10 else "tab10"]
        wheel = qualitative(np.arange(qualitative.N))
    for label in present:
        marks = axes.scatter(*points[labels == label].T, color=wheel[label], **style)
        drawn.append((cut(legible(classes[label]), LONGEST), marks))
    if len(present) and len(classes) <= NAMED:
        _legend(axes, drawn, 5 if len(classes) <= 10 else 7)
    else:
        note = f"{len(classes)} classes, a colour each" if len(present) else "no labels"
        axes.text(0.5, -0.02, note, ha="center", va="top", fontsize=10, color=PALE)


def _legend(axes: Axes, drawn: list[tuple[str, PathCollection]], most: int) -> None:
    """Names the marks below both axes, in at most `most` columns; the names are written as they stand."""
    names, marks = [name for name, _ in drawn], [mark for _, mark in drawn]
    columns = max(1, min(len(names), most, ACROSS // (max(map(width, names)) + 4)))
    figure = axes.get_figure(root=True)
    assert figure is not None  # the axes have just been made in it
    legend = figure.legend(
        marks,
        ["-"] * len(names),  # a name with `_` in front would be left out
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.2,
        fontsize=10,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=name, **text_style(name))
    for handle in filter(None, legend.legend_handles):
        handle.set(sizes=[50], alpha=1)
