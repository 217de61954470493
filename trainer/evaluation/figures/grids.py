"""A grid of accuracies, as a PNG file: one for each of two choices."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from trainer.evaluation.figures.charts import DPI, INK, save

COLOURS, FRAME = "cividis", "#d55e00"  # alike to colour-blind eyes
DARK = 0.55  # of the way from the least to the greatest value: what lies above has dark figures


def accuracy_grid(
    path: Path | str,
    layers: Sequence[str],
    noise: Sequence[float],
    accuracies: Sequence[Sequence[float]],
    best: tuple[int, int],
) -> None:
    """Draws accuracies [layers][noise] in [0, 1]: a line a block of the denoiser, the best one framed."""
    percent = 100 * np.array(accuracies, dtype=float)
    size = 2.6 + 0.75 * len(noise), 1.5 + 0.3 * len(layers)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(percent, cmap=COLOURS, aspect="auto")
    low, high = percent.min(), percent.max()
    for (row, column), value in np.ndenumerate(percent):
        colour = "black" if value - low > DARK * (high - low) else "white"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=9, color=colour)
    corner = best[1] - 0.5, best[0] - 0.5
    frame = Rectangle(corner, 1, 1, fill=False, edgecolor=FRAME, linewidth=3, clip_on=False)
    axes.add_patch(frame)
    axes.set_xticks(range(len(noise)), [f"{share:g}" for share in noise])
    axes.set_yticks(range(len(layers)), layers)
    axes.tick_params(length=0)
    axes.set_xlabel("noise / (signal + noise)", color=INK)
    axes.set_ylabel("block of the denoiser", color=INK)
    axes.set_title("Linear accuracy, %", loc="left", fontsize=11, fontweight="bold", color=INK)
    save(figure, path)
