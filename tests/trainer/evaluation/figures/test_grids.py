"""The grid of accuracies, read back pixel by pixel."""

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
    brightest = (255, 234, 70)  # of the colours: the greatest value
    inside = place(page, max(map(tuple, page[top:bottom, left:right].reshape(-1, 3).tolist()), key=lambda c: c[0] - c[2]))
    assert brightest[0] == inside[0] or top <= inside[0] <= bottom


def test_equal_accuracies_are_drawn(tmp_path):
    accuracy_grid(tmp_path / "grid.png", ["mid"], [0.1], [[0.1]], (0, 0))
    assert read(tmp_path / "grid.png").shape[2] == 3
