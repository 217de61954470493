"""Pictures of a run, as PNG files, and the table of accuracies for the terminal.

Drawn with matplotlib's Agg on figures of their own: no window, no pyplot, no state shared with the caller.
Images are arrays (or CPU tensors), uint8 or float in [0, 1], [H, W], [H, W, C] or [C, H, W] with C of 1 or 3.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter

DPI = 100
SAME, OTHER, QUERY = "#009e73", "#d55e00", "#404040"  # frames; the first two differ for colour-blind eyes too
FRAME, GAP, CAPTION, MARGIN, HEADER = 4, 14, 16, 24, 84  # pixels
INK, PALE = "#222222", "#777777"

# What is measured, in the order of the tables; then the features, in the order of the network.
KINDS = {
    r"few_shot/(\d+)/linear": "{}-shot linear",
    r"probe/linear": "linear",
    r"probe/mlp": "MLP",
    r"knn": "kNN",
}
FEATURES = ("conv", "fc", "y")
COLUMNS = {  # title -> (prefix of the key in results.json, colour of the bar)
    "encoder": ("", "#0072b2"),
    "untrained": ("control/untrained/", "#8c8c8c"),
    "untrained (recalibrated)": ("control/untrained_recalibrated/", "#bdbdbd"),
    "pixels": ("control/pixels/", "#e3b23c"),
}
# title -> ({metric: label of a curve}, {metric: label of a dashed line}, factor to the unit of the axis)
PANELS = {
    "Training loss": (
        {"loss": "loss"},
        {"loss/random_guess": "random guess"},
        1,
    ),
    "Mutual information, nats": (
        {"mi/train": "training groups", "mi/test": "held-out images"},
        {"mi/ceiling": "ceiling, log B"},
        1,
    ),
    "kNN accuracy, %": ({"knn/y": "y"}, {}, 100),
}


def neighbours(
    path: Path | str,
    query_images: Sequence,
    neighbour_images: Sequence[Sequence],
    query_labels: Sequence[int],
    neighbour_labels: Sequence[Sequence[int]],
    classes: Sequence[str],
) -> None:
    """A row for each test image [Q]: it, then its nearest training images [Q][K], framed by class."""
    queries = [_pixels(image) for image in query_images]
    rows = [[_pixels(image) for image in row] for row in neighbour_images]
    labels, row_labels = np.asarray(query_labels), np.asarray(neighbour_labels)
    columns, tile = len(rows[0]), _tile(queries[0])
    step, aside = tile + 2 * FRAME + GAP, 2 * GAP  # the test image stands a little apart
    figure, axes = _page(
        max(2 * MARGIN + (columns + 1) * step - GAP + aside, 640),
        HEADER + len(rows) * (step + CAPTION) + MARGIN - GAP,
    )
    same = int((row_labels == labels[:, None]).sum())
    _text(axes, MARGIN, 28, "Nearest training images by y", size=15, weight="bold")
    _text(axes, MARGIN, 52, f"{same} of {row_labels.size} share the class of the test image:")
    _legend(axes, MARGIN + 340, 52, {"same class": SAME, "other class": OTHER})
    for r, (query, row) in enumerate(zip(queries, rows, strict=True)):
        top = HEADER + r * (step + CAPTION)
        _framed(axes, MARGIN, top, tile, query, QUERY, classes[labels[r]], weight="bold")
        for c, (image, label) in enumerate(zip(row, row_labels[r], strict=True)):
            colour = SAME if label == labels[r] else OTHER
            _framed(axes, MARGIN + aside + (c + 1) * step, top, tile, image, colour, classes[label])
    _save(figure, path)


def views(path: Path | str, view_images: Sequence[Sequence]) -> None:
    """What the encoder sees: `view_images[v][i]` is view v of image i; its views stand side by side."""
    images = [[_pixels(image) for image in view] for view in view_images]
    count, across = len(images[0]), max(1, 8 // len(images))  # images; images in a line
    across = min(across, count)
    lines, (height, width) = math.ceil(count / across), images[0][0].shape[:2]
    tile = _tile(images[0][0])
    step, block = tile + 6, len(images) * (tile + 6) + (GAP if len(images) > 1 else 0)
    figure, axes = _page(max(2 * MARGIN + across * block, 420), HEADER + lines * (step + 6) + MARGIN)
    told = (
        "one view of each image" if len(images) == 1 else f"{len(images)} views of each image, side by side"
    )
    _text(axes, MARGIN, 28, "What the encoder sees", size=15, weight="bold")
    _text(axes, MARGIN, 52, f"{told}, {width} × {height} pixels")
    for v, view in enumerate(images):
        for i, image in enumerate(view):
            _place(
                axes, MARGIN + i % across * block + v * step, HEADER + i // across * (step + 6), tile, image
            )
    _save(figure, path)


def curves(path: Path | str, journal_metrics: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> None:
    """The run over images seen, {metric: (images, values)}. PANELS says which metrics are drawn where."""
    chosen = [title for title, panel in PANELS.items() if panel[0].keys() & journal_metrics.keys()]
    chosen = chosen or [next(iter(PANELS))]  # nothing logged yet: an empty loss
    figure = Figure(figsize=(4.8 * len(chosen), 3.6), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    for title, axes in zip(chosen, figure.subplots(1, len(chosen), squeeze=False)[0], strict=True):
        lines, references, factor = PANELS[title]
        series = {
            name: np.array(journal_metrics[name], dtype=float) for name in lines if name in journal_metrics
        }
        for number, (name, (images, values)) in enumerate(series.items()):
            colour, crowded = f"C{number}", len(values) > 50
            if crowded:  # each value pale, and their running mean
                axes.plot(images, factor * values, color=colour, alpha=0.25, linewidth=0.8)
                width = len(values) // 25
                images = np.convolve(images, np.ones(width) / width, "valid")
                values = np.convolve(values, np.ones(width) / width, "valid")
            marker = None if crowded else "o"
            axes.plot(
                images,
                factor * values,
                color=colour,
                linewidth=1.8,
                marker=marker,
                markersize=3.5,
                label=lines[name],
            )
        for name, label in references.items():
            if name in journal_metrics:
                axes.axhline(factor * journal_metrics[name][1][-1], color=PALE, dashes=(5, 3), label=label)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
        axes.set_xlabel("images seen", color=INK)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(color="#e6e6e6", linewidth=0.8)
        _bare(axes, ("top", "right"))
        if len(axes.get_lines()) > 1:
            axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def accuracies(path: Path | str, results: Mapping[str, float]) -> None:
    """Bars of every accuracy in `results` (the keys of results.json), the encoder's beside its controls'."""
    rows = _measurements(results)
    shown = [c for c in range(len(COLUMNS)) if any(values[c] is not None for _, values in rows)]
    figure = Figure(
        figsize=(8.4, 1.1 + 0.24 * sum(len(shown) + 1 for _ in rows)), dpi=DPI, layout="constrained"
    )
    axes = figure.add_subplot()
    for c in shown:
        title, (_, colour) = list(COLUMNS.items())[c]
        bars = [
            (r * (len(shown) + 1) + shown.index(c), 100 * values[c])
            for r, (_, values) in enumerate(rows)
            if values[c] is not None
        ]
        places, percents = zip(*bars, strict=True)
        drawn = axes.barh(places, percents, height=0.86, color=colour, label=title)
        weight = "bold" if title == "encoder" else "normal"
        axes.bar_label(drawn, fmt="%.1f", padding=4, fontsize=9, color=INK, fontweight=weight)
    centres = [r * (len(shown) + 1) + (len(shown) - 1) / 2 for r in range(len(rows))]
    axes.set_yticks(centres, [label for label, _ in rows])
    axes.set(xlim=(0, 108), xticks=range(0, 101, 20), ylim=(max(len(rows) * (len(shown) + 1) - 1, 0), -1))
    axes.set_xlabel("accuracy on test images, %", color=INK)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    _bare(axes, ("top", "right", "left"))
    axes.tick_params(axis="y", length=0)
    if shown:
        figure.legend(loc="outside upper center", ncols=len(shown), frameon=False)
    _save(figure, path)


def table(results: Mapping[str, float]) -> str:
    """The accuracies of `results` (the keys of results.json) in percent as plain text, '-' where none.

    Raw pixels are one feature: their figure stands in each row of its kind, whatever the encoder's feature.
    """
    rows = [
        (label, ["-" if v is None else f"{100 * v:.1f}" for v in values])
        for label, values in _measurements(results)
    ]
    first = max([len("accuracy, %"), *(len(label) for label, _ in rows)])
    lines = [("accuracy, %", list(COLUMNS)), *rows]
    return "\n".join(
        label.ljust(first)
        + "".join(f"  {v:>{max(len(title), 5)}}" for v, title in zip(cells, COLUMNS, strict=True))
        for label, cells in lines
    )


def _measurements(results: Mapping[str, float]) -> list[tuple[str, list[float | None]]]:
    """(label, a value or None for each of COLUMNS), in the order of KINDS, shots and FEATURES."""
    prefixes = [prefix for prefix, _ in COLUMNS.values()]
    found = {}
    for key in results:
        key = key.removeprefix(max((p for p in prefixes if key.startswith(p)), key=len))
        for order, (kind, label) in enumerate(KINDS.items()):
            match = re.fullmatch(f"({kind})/({'|'.join(FEATURES)})", key)
            if match:
                _, *shots, feature = match.groups()
                place = (order, *map(int, shots), FEATURES.index(feature))
                found[key] = (place, f"{label.format(*shots)}, {feature}")
    rows = []
    for key, (_, label) in sorted(found.items(), key=lambda item: item[1][0]):
        values = [results.get(prefix + key) for prefix in prefixes]
        if values[-1] is None:
            values[-1] = results.get(prefixes[-1] + key.rpartition("/")[0])
        rows.append((label, values))
    return rows


def _pixels(image) -> np.ndarray:
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


def _tile(image: np.ndarray) -> int:
    """Side of a tile, pixels: a whole multiple of a small image (crisp), at most 128 for a large one."""
    side = max(image.shape[:2])
    return min(128, side * max(1, round(96 / side)))


def _page(width: int, height: int) -> tuple[Figure, Axes]:
    """A figure whose coordinates are its pixels, counted from the upper left corner."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return figure, axes


def _text(axes: Axes, x: float, y: float, text: str, size: float = 10.5, **style) -> None:
    axes.text(x, y, text, fontsize=size, color=INK, va="center", **style)


def _legend(axes: Axes, x: float, y: float, entries: dict[str, str]) -> None:
    for label, colour in entries.items():
        axes.add_patch(Rectangle((x, y - 7), 14, 14, facecolor=colour, linewidth=0))
        _text(axes, x + 20, y, label)
        x += 120


def _framed(
    axes: Axes, x: int, y: int, tile: int, image: np.ndarray, colour: str, caption: str, **style
) -> None:
    side = tile + 2 * FRAME
    axes.add_patch(Rectangle((x, y), side, side, facecolor=colour, linewidth=0, antialiased=False))
    _place(axes, x + FRAME, y + FRAME, tile, image)
    _text(axes, x + side / 2, y + side + CAPTION / 2 + 1, caption, size=9, ha="center", **style)


def _place(axes: Axes, x: int, y: int, tile: int, image: np.ndarray) -> None:
    crisp = "nearest" if max(image.shape[:2]) <= tile else "antialiased"
    axes.imshow(image, extent=(x, x + tile, y + tile, y), aspect="auto", interpolation=crisp, zorder=2)


def _bare(axes: Axes, sides: tuple[str, ...]) -> None:
    for side in sides:
        axes.spines[side].set_visible(False)


def _save(figure: Figure, path: Path | str) -> None:
    figure.savefig(path, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
