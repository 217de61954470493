"""The grid of accuracies, read back pixel by pixel."""

import matplotlib
import numpy as np
import pytest

from tests.helpers.pages import place, read, rgb
from trainer.evaluation.figures.grids import accuracy_grid


@pytest.mark.parametrize("best", [(0, 1), (20, 4)])
def test_the_best_cell_is_framed_in_its_place(tmp_path, best):
    layers, noise = [f"up.{i}.0" for i in range(21)], [0.02, 0.05, 0.1, 0.2, 0.4]
    values = np.full((21, 5), 0.3)
    values[best] = 0.8
    accuracy_grid(tmp_path / "grid.png", layers, noise, values.tolist(), best)
    page = read(tmp_path / "grid.png")
    top, left, bottom, right = place(page, rgb("#d55e00"))
    least, most = (matplotlib.colormaps["cividis"](x, bytes=True)[:3] for x in (0.0, 1.0))
    assert tuple(page[top + 5, left + 5]) == most
    assert tuple(page[top + 5, left - 5]) == least
    cell = place(page, most)
    assert top <= cell[0] < cell[2] <= bottom
    assert left <= cell[1] < cell[3] <= right
    others = place(page, least)
    line, column = (others[2] - others[0]) / 21, (others[3] - others[1]) / 5
    assert round((cell[0] - others[0]) / line) == best[0]
    assert round((cell[1] - others[1]) / column) == best[1]


def test_equal_accuracies_are_drawn(tmp_path):
    accuracy_grid(tmp_path / "grid.png", ["mid"], [0.1], [[0.1]], (0, 0))
    assert read(tmp_path / "grid.png").shape[2] == 3
