"""Charts of a run, as PNG files, and the table of accuracies for the terminal.

Each is drawn by matplotlib's Agg on a new figure: no window, no pyplot, no state shared with the caller.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, LogFormatter

DPI = 100
INK, PALE, GRID = "#222222", "#777777", "#e6e6e6"
Metrics = Mapping[str, tuple[Sequence[int], Sequence[float]]]  # name -> (images seen, values)

# Panels of the curves: title -> ({metric: label of a curve}, {metric: "what: whose" of a dashed line}, factor
# to the unit of the axis). The loss stands at the end of its panel, and is not drawn beside its only term.
PANELS = {
    "Training loss": (
        {
            "local": "local term",
            "global": "global term",
            "coordinates": "coordinates",
            "supervised": "supervised",
            "contrast": "contrast",
            "loss": "loss",
        },
        {
            "local/random_guess": "random guess: local",
            "global/random_guess": "random guess: global",
            "coordinates/random_guess": "random guess: coordinates",
            "contrast/random_guess": "random guess: contrast",
        },
        1,
    ),
    "Squared error of an image": ({"sse": "training views"}, {}, 1),
    "Denoising error, a number": (
        {"denoising": "training", "denoising/y": "y", "denoising/w": "w given y"},
        {
            "denoising/zero": "error of answering 0",
            "denoising/y/zero": "error of answering 0: y",
            "denoising/w/zero": "error of answering 0: w",
        },
        1,
    ),
    "Prior matching": (
        {"prior": "encoder", "prior/discriminator": "discriminator"},
        {},
        1,
    ),
    "Mutual information, nats": (
        {
            "mi/local": "local, training groups",
            "mi/local/held_out": "local, held-out images",
            "mi/global": "global, training groups",
            "mi/global/held_out": "global, held-out images",
            "mi/contrast/held_out": "contrast, held-out images",
            "mi_estimate/queue": "contrast, queue (no bound)",
        },
        {"mi/local/ceiling": "ceiling, log B: local", "mi/global/ceiling": "ceiling, log B: global"},
        1,
    ),
    "kNN accuracy, %": ({"knn/y/online": "y", "knn/head/online": "projection head"}, {}, 100),
    "Effective rank": ({"health/effective_rank": "y"}, {}, 1),
    "Uniformity and alignment": (
        {"health/alignment": "alignment, mirror images", "health/uniformity": "uniformity"},
        {},
        1,
    ),
}
LOGARITHMIC = {"Squared error of an image"}  # it falls by two decades in the first steps
ACROSS = 3  # panels in a row
CROWDED = 50  # values of a curve beyond which its running mean is drawn

# What is measured, in the order of the tables; then the features, in the order of the network.
KINDS = {
    r"few_shot/(\d+)/linear": "{}-shot linear",
    r"probe/linear": "linear",
    r"probe/linear_sgd": "linear, SGD",
    r"probe/mlp": "MLP",
    r"probe/svm": "SVM",
    r"knn": "kNN",
}
FEATURES = ("conv", "pooled", "fc", "y", "head")
PARTS = ("std", "converged", "iterations", "objective", "l2")  # what else is known of a measurement
COLUMNS = {  # title -> (prefix of the key in results.json, colour of the bar)
    "encoder": ("", "#0072b2"),
    "untrained": ("control/untrained/", "#8c8c8c"),
    "untrained (recalibrated)": ("control/untrained_recalibrated/", "#bdbdbd"),
    "pixels": ("control/pixels/", "#e3b23c"),
}
Cell = tuple[float, float]  # accuracy and its standard deviation over runs (0: one run), in [0, 1]


# ---- curves --------------------------------------------------------------------------------------


def curves(path: Path | str, metrics: Metrics) -> None:
    """Draws the metrics over images seen: those PANELS of which `metrics` has a curve."""
    chosen = [title for title, panel in PANELS.items() if panel[0].keys() & metrics.keys()]
    chosen = chosen or [next(iter(PANELS))]  # nothing logged yet: an empty loss
    rows, columns = -(-len(chosen) // ACROSS), min(len(chosen), ACROSS)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(4.8 * columns, 3.6 * rows), dpi=DPI, layout=layout)
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for title, axes in zip(chosen, places, strict=False):
        _panel(axes, title, metrics)
    for axes in places[len(chosen) :]:
        axes.set_axis_off()
    save(figure, path)


def _panel(axes: Axes, title: str, metrics: Metrics) -> None:
    lines, references, factor = PANELS[title]
    shown = [name for name in lines if name in metrics]
    if len(shown) == 2 and shown[1] == "loss":
        shown.pop()
    for number, name in enumerate(shown):
        images, values = np.array(metrics[name], dtype=float)
        style: dict[str, Any] = {"color": INK if name == "loss" and len(shown) > 1 else f"C{number}"}
        if len(values) > CROWDED:  # each value pale, and their running mean
            axes.plot(images, factor * values, alpha=0.25, linewidth=0.8, **style)
            width = len(values) // 25
            images = np.convolve(images, np.ones(width) / width, "valid")
            values = np.convolve(values, np.ones(width) / width, "valid")
        else:
            style |= {"marker": "o", "markersize": 3.5 if len(values) > 1 else 8}  # one has no line beside it
        axes.plot(images, factor * values, linewidth=1.8, label=lines[name], **style)
    levels: dict[float, list[str]] = {}  # those of several terms may be one line
    for name in references:
        if name in metrics:
            levels.setdefault(factor * metrics[name][1][-1], []).append(references[name])
    for number, (level, labels) in enumerate(levels.items()):
        what, whose = labels[0].partition(": ")[0], [label.partition(": ")[2] for label in labels]
        label = f"{what}: {', '.join(whose)}" if len(levels) > 1 else what
        axes.axhline(level, color=PALE, dashes=((5, 3), (2, 2), (9, 3))[number], label=label)
    logarithmic = title in LOGARITHMIC and all(np.max(metrics[name][1]) > 0 for name in shown)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())  # 385, not 3.85 x 10²
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_xlabel("images seen", color=INK)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(which="both" if logarithmic else "major", color=GRID, linewidth=0.8)
    bare(axes, ("top", "right"))
    if len(shown) + len(levels) > 1:
        axes.legend(framealpha=0.85, edgecolor="none", fontsize=9)


# ---- accuracies ----------------------------------------------------------------------------------


def accuracies(path: Path | str, results: Mapping[str, float]) -> None:
    """Bars of every accuracy in `results` (the keys of results.json), the encoder's beside its controls'."""
    rows = _measurements(results)
    shown = _columns(rows)
    slots = len(shown) + 1  # bars of a row, and a gap
    figure = Figure(figsize=(8.4, 1.1 + 0.22 * slots * max(len(rows), 1)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for place, title in enumerate(shown):
        filled = [(r * slots + place, cells[title]) for r, (_, cells) in enumerate(rows) if title in cells]
        bars = axes.barh(
            [y for y, _ in filled],
            [100 * value for _, (value, _) in filled],
            height=0.86,
            color=COLUMNS[title][1],
            label=title,
        )
        axes.bar_label(
            bars,
            [_percent(cell) for _, cell in filled],
            padding=4,
            fontsize=9,
            color=INK,
            fontweight="bold" if title == "encoder" else "normal",
        )
    centres = [r * slots + (len(shown) - 1) / 2 for r in range(len(rows))]
    axes.set_yticks(centres, [label for label, _ in rows])
    axes.set(xlim=(0, 112), xticks=range(0, 101, 20), ylim=(max(len(rows) * slots - 1, 0), -1))
    axes.set_xlabel("accuracy on test images, %", color=INK)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    bare(axes, ("top", "right", "left"))
    axes.spines["bottom"].set_bounds(0, 100)  # beyond are the figures of the longest bars
    axes.tick_params(axis="y", length=0)
    if rows:
        figure.legend(loc="outside upper center", ncols=len(shown), frameon=False)
    save(figure, path)


def table(results: Mapping[str, float]) -> str:
    """The accuracies of `results` (the keys of results.json) in percent as plain text, '-' where none.

    Raw pixels are one feature: their figure stands in each row of its kind, whatever the encoder's feature.
    A control that was not measured has no column. Empty where there is no accuracy at all.
    """
    rows = _measurements(results)
    if not rows:
        return ""
    shown = _columns(rows)
    lines = [["accuracy, %", *shown]]
    lines += [[label, *(_percent(cells.get(title)) for title in shown)] for label, cells in rows]
    return aligned(lines)


def _columns(rows: list[tuple[str, dict[str, Cell]]]) -> list[str]:
    """The titles of COLUMNS that some row has a value for; the encoder's always."""
    filled = {"encoder", *(title for _, cells in rows for title in cells)}
    return [title for title in COLUMNS if title in filled]


def _percent(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    value, deviation = cell
    return f"{100 * value:.1f} ± {100 * deviation:.1f}" if deviation else f"{100 * value:.1f}"


def _measurements(results: Mapping[str, float]) -> list[tuple[str, dict[str, Cell]]]:
    """(label, {title of COLUMNS: cell}), in the order of KINDS, shots and FEATURES; other features last."""
    prefixes = [prefix for prefix, _ in COLUMNS.values()]
    measurements = {}
    for key in results:
        key = key.removeprefix(max((p for p in prefixes if key.startswith(p)), key=len))
        for order, (kind, label) in enumerate(KINDS.items()):
            if match := re.fullmatch(rf"({kind})/(\w+)", key):
                _, *shots, feature = match.groups()
                known = FEATURES.index(feature) if feature in FEATURES else len(FEATURES)
                if feature not in PARTS:  # those of raw pixels
                    place = (order, *map(int, shots), known, feature)
                    measurements[key] = (place, f"{label.format(*shots)}, {feature}")
    rows = []
    for key, (_, label) in sorted(measurements.items(), key=lambda item: item[1][0]):
        cells = {}
        for title, (prefix, _) in COLUMNS.items():
            whole = prefix + (key.rpartition("/")[0] if title == "pixels" else key)
            if whole in results:
                cells[title] = (results[whole], results.get(f"{whole}/std", 0.0))
        rows.append((label, cells))
    return rows


def aligned(lines: list[list[str]]) -> str:
    """A table as plain text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        line[0].ljust(widths[0])
        + "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )


# ---- for every figure ----------------------------------------------------------------------------


def bare(axes: Axes, sides: tuple[str, ...]) -> None:
    """Removes the lines at these sides of the axes."""
    for side in sides:
        axes.spines[side].set_visible(False)


def save(figure: Figure, path: Path | str) -> None:
    """Writes a PNG file; equal figures are equal bytes."""
    figure.savefig(path, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
