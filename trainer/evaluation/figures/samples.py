"""Pages of generated images, as PNG files: samples, their nearest training images, the steps to a sample.

Images are as in `figures.images`. A curve shows what noise on latents does to what is decoded from them.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.evaluation.figures.charts import DPI, GRID, INK, bare, save
from trainer.evaluation.figures.images import (
    CAPTION,
    GAP,
    HEADER,
    MARGIN,
    page,
    pixels,
    place,
    tile_size,
    write,
)

STEP = 4  # pixels between the samples of a grid
ASIDE = 2 * GAP  # pixels between pairs that do not belong together
WIDEST = 1600  # pixels of a page, about: of a large image fewer stand in a line
NARROWEST = 760  # pixels, for the title
LEAST_STEP = 66  # pixels, for the times above the steps of a sample
ERROR, DISTANCE = "#0072b2", "#d55e00"  # of the two axes of a curve


def grid(path: Path | str, samples: Sequence, subtitle: str, title: str = "Samples") -> None:
    """Draws samples in lines, about as many lines as columns; `subtitle` says how they were drawn."""
    images = [pixels(image) for image in samples]
    tile = tile_size(images[0])
    most = (WIDEST - 2 * MARGIN) // (tile + STEP)
    across = max(1, min(most, math.ceil(math.sqrt(len(images)))))
    lines, step = math.ceil(len(images) / across), tile + STEP
    figure, axes = page(
        max(2 * MARGIN + across * step - STEP, NARROWEST), HEADER - 8 + lines * step + MARGIN - STEP
    )
    write(axes, MARGIN, 28, title, size=15, weight="bold")
    write(axes, MARGIN, 52, subtitle)
    for i, image in enumerate(images):
        place(axes, MARGIN + i % across * step, HEADER - 8 + i // across * step, tile, image)
    save(figure, path)


def neighbours(
    path: Path | str, samples: Sequence, nearest: Sequence, distances: Sequence[float], typical: float | None
) -> None:
    """Draws each sample beside its nearest training image, their distance below, the closest first.

    `typical`: the median distance of a test image to its nearest training image; None: not known.
    """
    order = sorted(range(len(samples)), key=lambda i: distances[i])
    tile = tile_size(pixels(samples[0]))
    pair = 2 * tile + STEP
    across = max(1, min((WIDEST - 2 * MARGIN + ASIDE) // (pair + ASIDE), math.ceil(math.sqrt(len(order)))))
    line, lines, head = tile + CAPTION + 6, math.ceil(len(order) / across), HEADER + 4
    figure, axes = page(
        max(2 * MARGIN + across * (pair + ASIDE) - ASIDE, NARROWEST), head + lines * line + MARGIN - 6
    )
    write(axes, MARGIN, 28, "Samples beside their nearest training images", size=15, weight="bold")
    subtitle = "below each pair: their distance in the extractor's features"
    if typical is not None:
        subtitle += f"; of test images it is {typical:.4g} in the median"
    write(axes, MARGIN, 52, subtitle)
    for place_of, i in enumerate(order):
        left, top = MARGIN + place_of % across * (pair + ASIDE), head + place_of // across * line
        for column, (name, image) in enumerate((("sample", samples[i]), ("training", nearest[i]))):
            at = left + column * (tile + STEP)
            if place_of < across:
                write(axes, at + tile / 2, head - 9, name, size=9, ha="center")
            place(axes, at, top, tile, pixels(image))
        write(axes, left + pair / 2, top + tile + CAPTION / 2, f"{distances[i]:.4g}", size=9, ha="center")
    save(figure, path)


def steps(path: Path | str, lines: Mapping[str, Sequence[Sequence]], times: Sequence[float]) -> None:
    """Draws how samples come about.

    Args:
        lines: {name: [samples][steps] images}, a line for each sample and name: what the denoiser predicts as
            the sample, say, and the noisy image that it sees.
        times: of each step, as the process counts them.
    """
    names, first = list(lines), next(iter(lines.values()))
    tile = tile_size(pixels(first[0][0]))
    step = max(tile + STEP, LEAST_STEP)
    aside = 10 + max(map(len, names)) * 8 if any(names) else 0
    line, block = tile + STEP, len(names) * (tile + STEP) + GAP
    figure, axes = page(
        max(2 * MARGIN + aside + len(times) * step - STEP, NARROWEST),
        HEADER + 8 + len(first) * block - GAP + MARGIN - STEP,
    )
    write(axes, MARGIN, 28, "Steps of samples", size=15, weight="bold")
    write(axes, MARGIN, 52, "predicted where each step begins, and at the right the sample; above: the time")
    left = MARGIN + aside
    for s, time in enumerate(times):
        write(axes, left + s * step + tile / 2, HEADER - 2, f"{time:.3g}", size=9, ha="center")
    for sample in range(len(first)):
        for number, name in enumerate(names):
            top = HEADER + 8 + sample * block + number * line
            write(axes, MARGIN, top + tile / 2, name, size=9)
            for s, image in enumerate(lines[name][sample]):
                place(axes, left + s * step, top, tile, pixels(image))
    save(figure, path)


def noise_curve(
    path: Path | str,
    scales: Sequence[float],
    errors: Sequence[float],
    distances: Sequence[float] | None,
    distance: str = "Fréchet distance",
) -> None:
    """Draws the squared error of decode(z + s · noise), and a distance named `distance`, over the scale s."""
    figure = Figure(figsize=(7.2, 4.2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    panels = [(axes, errors, "squared error an image", ERROR, "o")]
    if distances is not None:
        panels.append((axes.twinx(), distances, distance, DISTANCE, "s"))
    for panel, values, label, colour, marker in panels:
        panel.plot(scales, values, color=colour, marker=marker, markersize=4.5, linewidth=1.8)
        panel.set_ylabel(label, color=colour)
        panel.set_ylim(0, 1.06 * max(*values, 1e-9))
        panel.tick_params(axis="y", colors=colour)
        panel.yaxis.set_major_locator(MaxNLocator(6))
        bare(panel, ("top",) if distances is not None else ("top", "right"))
    axes.set_xlim(left=-0.03 * max(*scales, 0.1))  # no scale is below 0
    axes.set_xlabel("scale s of the noise on z, in standard deviations of each channel", color=INK)
    axes.set_title("What noise on latents does to decoded images", loc="left", fontsize=11, fontweight="bold")
    axes.grid(color=GRID, linewidth=0.8)
    save(figure, path)
