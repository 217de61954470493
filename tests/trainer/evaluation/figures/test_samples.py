"""Pages of samples: drawn for any number and size of images, and what stands on them."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from tests.helpers.tiny_dataset import pictures
from trainer.evaluation.figures import samples


@pytest.fixture
def written(monkeypatch):
    """The texts of the pages that are drawn, in their order."""
    texts, text = [], Axes.text
    monkeypatch.setattr(
        Axes, "text", lambda self, x, y, s, **kw: texts.append(s) or text(self, x, y, s, **kw)
    )
    return texts


def inside(path, image: np.ndarray) -> bool:
    """Whether an image stands on a page, enlarged by a whole number."""
    page = np.asarray(Image.open(path).convert("RGB"))
    for scale in range(1, 17):
        tile = image.repeat(scale, 0).repeat(scale, 1)
        if tile.shape[0] > page.shape[0] or tile.shape[1] > page.shape[1]:
            break
        for y, x in zip(*np.nonzero((page[: 1 - tile.shape[0] or None] == tile[0, 0]).all(2)), strict=True):
            if np.array_equal(page[y : y + tile.shape[0], x : x + tile.shape[1]], tile):
                return True
    return False


@pytest.mark.parametrize(("count", "side"), [(1, 8), (3, 32), (20, 8), (2, 300)])
def test_a_grid_shows_every_sample(tmp_path, written, count, side):
    images = pictures(count, side, side)
    samples.grid(tmp_path / "grid.png", list(images), f"{count} samples")
    assert written == ["Samples", f"{count} samples"]
    if side < 100:
        assert all(inside(tmp_path / "grid.png", image) for image in images[-2:])
    first = (tmp_path / "grid.png").read_bytes()
    samples.grid(tmp_path / "grid.png", list(images), f"{count} samples")
    assert (tmp_path / "grid.png").read_bytes() == first


@pytest.mark.parametrize("count", [1, 3, 17])
def test_neighbours_stand_beside_their_samples_the_closest_first(tmp_path, written, count):
    images = pictures(2 * count, 8, 8)
    distances = np.random.default_rng(0).permutation(count) + 0.5
    path = tmp_path / "neighbours.png"
    samples.neighbours(path, list(images[:count]), list(images[count:]), distances.tolist(), 12.25)
    assert "of test images it is 12.25 in the median" in written[1]
    assert [text for text in written if text.endswith(".5")] == [f"{i + 0.5:g}" for i in range(count)]
    assert inside(path, images[0])
    assert inside(path, images[-1])
    samples.neighbours(path, list(images[:count]), list(images[count:]), distances.tolist(), None)
    assert not any("median" in text for text in written[-count:])


@pytest.mark.parametrize(("rows", "steps"), [(1, 1), (3, 10)])
def test_steps_of_a_sample(tmp_path, written, rows, steps):
    frames = pictures(rows * steps, 8, 8).reshape(rows, steps, 8, 8, 3)
    times = np.linspace(1, 0, steps).round(2).tolist()
    path = tmp_path / "steps.png"
    samples.steps(path, {"x predicted": frames, "noisy": frames[:, ::-1]}, times)
    assert written[1] == "predicted where each step begins, and at the right the sample; above: the time"
    assert written[2 : 2 + steps] == [f"{time:.3g}" for time in times]
    assert written[2 + steps :] == ["x predicted", "noisy"] * rows
    assert inside(path, frames[-1, -1])
    samples.steps(path, {"": frames}, times)  # without names


@pytest.mark.parametrize("distances", [None, [276, 322, 616]])
def test_a_noise_curve(tmp_path, distances):
    path = tmp_path / "curve.png"
    samples.noise_curve(path, [0, 0.1, 0.3], [4.1, 4.9, 8.0], distances, "fid")
    page = np.asarray(Image.open(path).convert("RGB")).astype(int)
    orange = (abs(page - [0xD5, 0x5E, 0x00]).sum(2) < 12).sum()
    blue = (abs(page - [0x00, 0x72, 0xB2]).sum(2) < 12).sum()
    assert blue > 300
    assert (orange > 300) == (distances is not None)
    samples.noise_curve(path, [0], [0.0], None)
