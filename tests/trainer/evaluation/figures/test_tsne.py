"""The map of test images."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from trainer.evaluation.figures import tsne


@pytest.fixture(scope="module")
def blobs():
    """Three far groups of 20 points in 5 dimensions."""
    labels = np.repeat(np.arange(3), 20)
    return np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32) + 30 * np.eye(5)[labels], labels


def test_points_of_a_group_stay_together_and_a_seed_decides(blobs):
    y, labels = blobs
    points = tsne.embed(y, seed=3)
    assert points.shape == (60, 2)
    assert (points.min(), points.max()) == (0, 1)
    away = np.linalg.norm(points[:, None] - points[None], axis=-1) + 9 * np.eye(60)
    assert (labels[away.argmin(axis=1)] == labels).all()
    assert np.array_equal(points, tsne.embed(y, seed=3))


@pytest.mark.parametrize("count", [tsne.FEWEST, 31])
def test_few_images_have_a_map(count):
    points = tsne.embed(np.random.default_rng(1).normal(size=(count, 4)), seed=2**40)
    assert np.isfinite(points).all()


def test_each_cell_shows_the_point_nearest_to_its_middle(monkeypatch):
    monkeypatch.setattr(tsne, "CELLS", 2)
    points = np.array([[0.1, 0.1], [0.26, 0.25], [1.0, 1.0], [0.7, 0.8], [0.9, 0.2]])
    assert tsne.on_grid(points) == {(1, 0): 1, (0, 1): 3, (1, 1): 4}


def drawn(path, labels, classes):
    points = np.random.default_rng(0).random((len(labels), 2))
    cells = tsne.on_grid(points)
    tsne.draw(path, points, labels, classes, cells, np.full((len(cells), 8, 8), 255, np.uint8))
    with Image.open(path) as image:
        page = np.asarray(image.convert("RGB"))
    return {tuple(colour) for colour in page[:, : page.shape[1] // 2].reshape(-1, 3).tolist()}


def rgb(colour):
    return tuple(round(255 * part) for part in to_rgb(colour))


def test_legend_names_up_to_twenty_classes_and_no_label_has_its_own_colour(tmp_path):
    colours = drawn(tmp_path / "a.png", np.array([0, 1, 2, -1] * 10), ["cat", "dog", "ship"])
    assert {rgb("C0"), rgb("C1"), rgb("C2"), rgb(tsne.UNLABELLED)} <= colours  # whole in the legend alone
    colours = drawn(tmp_path / "b.png", np.arange(40) % 25, [f"class {i}" for i in range(25)])
    assert rgb(tsne.PALE) in colours  # the note instead of a legend
    colours = drawn(tmp_path / "c.png", np.full(40, -1), [])
    assert rgb("C0") not in colours
    assert rgb(tsne.PALE) in colours
