"""Pages read back pixel by pixel."""

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image


def read(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert path.stat().st_size < 1_000_000
        return np.asarray(image.convert("RGB"))


def rgb(colour):
    return tuple(round(255 * part) for part in to_rgb(colour))


def place(page, colour):
    """(top, left, bottom, right) of everything that has exactly this colour."""
    rows, columns = np.nonzero((page == colour).all(axis=-1))
    return rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
