"""Pages of reconstructions and interpolations, and a table of errors for the terminal.

Images are as in `figures.images`. Errors are squared errors summed over an image, pixels in [0, 1].
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.evaluation.figures.charts import aligned, save
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

ACROSS = 9  # pictures in a line of reconstructions
STEP = 6  # pixels between pictures that belong together
ASIDE = 76  # pixels, for the names of the interpolations
CONTROL = "control/linear_codec/"
ROWS = {  # of the table: what is measured -> (its key in results.json, how it is written)
    "squared error an image, pixels in [0, 1]": ("sse", ".3f"),
    "squared error an element": ("mse", ".2e"),
    "PSNR, dB": ("psnr", ".2f"),
    "SSIM": ("ssim", ".4f"),
    "log q(x|z) at its best sigma, nats an image": ("log_q", ",.0f"),
    "the same, bits a dimension of 256 levels": ("bits_per_dimension", ".2f"),
    "swap ratio: error with another image's y / w": ("swap_ratio", ".3f"),
    "D, numbers of z = [y, w]": ("latent_size", ",.0f"),
}


NEWER = ("ssim", "latent_size")  # which results of older versions lack, and small images have no SSIM


def reconstructions(
    path: Path | str, originals: Sequence, codecs: Mapping[str, tuple[Sequence, Sequence[float]]]
) -> None:
    """Draws each image beside its reconstructions by `codecs` {name: (images, errors)}, the errors below."""
    columns = {"original": (originals, None), **codecs}
    tile, across = tile_size(pixels(originals[0])), max(1, ACROSS // len(columns))
    across = min(across, len(originals))
    step = tile + STEP
    block, line = len(columns) * step + 2 * GAP, step + CAPTION + 4
    lines = math.ceil(len(originals) / across)
    head = HEADER + 4
    figure, axes = page(max(2 * MARGIN + across * block - 2 * GAP, 620), head + lines * line + MARGIN - GAP)
    write(axes, MARGIN, 28, "Reconstructions of test images", size=15, weight="bold")
    write(axes, MARGIN, 52, "below each: the squared error summed over the image, pixels in [0, 1]")
    for c, (name, (images, errors)) in enumerate(columns.items()):
        for i, image in enumerate(images):
            left, top = MARGIN + i % across * block + c * step, head + i // across * line
            if i < across:
                write(axes, left + tile / 2, head - 9, name, size=9, ha="center")
            place(axes, left, top, tile, pixels(image))
            if errors is not None:
                middle = left + tile / 2, top + tile + CAPTION / 2
                write(axes, *middle, f"{errors[i]:#.3g}".rstrip("."), size=9, ha="center")
    save(figure, path)


def interpolations(
    path: Path | str, zero: Sequence, one: Sequence, between: Mapping[str, Sequence[Sequence]]
) -> None:
    """Draws a line for each pair of images and each way {name: [pairs][steps] images} between the two."""
    tile, steps = tile_size(pixels(zero[0])), len(next(iter(between.values()))[0])
    step, aside = tile + STEP, 2 * GAP  # the images themselves stand a little apart
    block, head = len(between) * step + 2 * GAP, HEADER + 8
    first = MARGIN + ASIDE + step + aside  # left edge of t = 0
    last = first + steps * step + aside - STEP
    figure, axes = page(max(last + tile + MARGIN, 740), head + len(zero) * block - 2 * GAP + MARGIN)
    write(axes, MARGIN, 28, "Interpolations between two test images", size=15, weight="bold")
    subtitle = (
        "all of z: (1 - t)·z₀ + t·z₁;  y only: w stays that of image 0;  w only: y stays that of image 0"
    )
    write(axes, MARGIN, 52, subtitle)
    for left, name in ((first - aside - step, "image 0"), (last, "image 1")):
        write(axes, left + tile / 2, head - 10, name, size=9, ha="center", weight="bold")
    for s in range(steps):
        label = f"{'t = ' if s == 0 else ''}{s / max(steps - 1, 1):.3g}"
        write(axes, first + s * step + tile / 2, head - 10, label, size=9, ha="center")
    for p in range(len(zero)):
        for number, (name, frames) in enumerate(between.items()):
            top = head + p * block + number * step
            write(axes, MARGIN, top + tile / 2, name)
            for s, image in enumerate(frames[p]):
                place(axes, first + s * step, top, tile, pixels(image))
        middle = head + p * block + (len(between) - 1) * step // 2  # beside all of its lines
        place(axes, first - aside - step, middle, tile, pixels(zero[p]))
        place(axes, last, middle, tile, pixels(one[p]))
    save(figure, path)


def table(results: Mapping[str, float]) -> str:
    """The reconstruction in `results` (the keys of results.json) as plain text; '' where there is none."""
    if "reconstruction/sse" not in results:
        return ""
    prefixes = {"autoencoder": "reconstruction/"}
    if f"{CONTROL}reconstruction/sse" in results:
        prefixes["linear codec"] = f"{CONTROL}reconstruction/"
    lines = [["reconstruction of test images", *prefixes]]
    for label, (key, form) in ROWS.items():
        cells = [results.get(prefix + key) for prefix in prefixes.values()]
        if cells[0] is None and key in NEWER:
            continue
        lines.append([label, *("-" if cell is None else format(cell, form) for cell in cells)])
    return aligned(lines)
