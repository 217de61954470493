"""The pictures, read back pixel by pixel, and the table's exact text."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from trainer.evaluation.figures import (
    COLUMNS,
    OTHER,
    QUERY,
    SAME,
    accuracies,
    curves,
    neighbours,
    table,
    views,
)

RESULTS = {
    "probe/mlp/y": 0.5812,
    "probe/mlp/fc": 0.6466,
    "probe/mlp/conv": 0.6,
    "probe/linear/y": 0.5,
    "few_shot/5/linear/y": 0.3333,
    "few_shot/20/linear/y": 0.4,
    "knn/y": 1.0,
    "control/untrained/probe/mlp/y": 0.387,
    "control/untrained_recalibrated/probe/mlp/y": 0.4,
    "control/pixels/probe/linear": 0.39,
    "control/pixels/few_shot/5/linear": 0.2,
    "control/pixels/knn/y": 0.05,
    "mi/local/test": 3.1,
}
TABLE = """\
accuracy, %        encoder  untrained  untrained (recalibrated)  pixels
5-shot linear, y      33.3          -                         -    20.0
20-shot linear, y     40.0          -                         -       -
linear, y             50.0          -                         -    39.0
MLP, conv             60.0          -                         -       -
MLP, fc               64.7          -                         -       -
MLP, y                58.1       38.7                      40.0       -
kNN, y               100.0          -                         -     5.0"""


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


def solid(number, size, layout="HWC"):
    """A plain image in a colour of its own."""
    image = np.full((size, size, 3), (200, 30 + 3 * number, 7 * number), dtype=np.uint8)
    return image if layout == "HWC" else image.transpose(2, 0, 1) / 255


@pytest.mark.parametrize(("size", "side"), [(8, 96), (32, 96), (64, 128), (200, 128)])
@pytest.mark.parametrize("layout", ["HWC", "CHW"])
def test_neighbours_stand_in_their_rows_in_frames_of_their_class(tmp_path, size, side, layout):
    labels, others = [0, 2], [[0, 1, 0], [1, 2, 2]]
    queries = [solid(i, size, layout) for i in range(2)]
    near = [[solid(2 + 3 * i + j, size, layout) for j in range(3)] for i in range(2)]
    neighbours(tmp_path / "n.png", queries, near, labels, others, ["cat", "dog", "ship"])
    page = read(tmp_path / "n.png")

    boxes = []
    for row in range(2):
        tiles = [(row, QUERY)] + [
            (2 + 3 * row + j, SAME if others[row][j] == labels[row] else OTHER) for j in range(3)
        ]
        for number, frame in tiles:
            top, left, bottom, right = place(page, solid(number, 1)[0, 0])
            assert (bottom - top, right - left) == (side, side)
            edges = page[top - 2, left], page[bottom + 1, left], page[top, left - 2], page[top, right + 1]
            assert {tuple(edge.tolist()) for edge in edges} == {rgb(frame)}
            assert (page[top - 6, left] == 255).all()
            boxes.append((top, left))
    tops, lefts = zip(*boxes, strict=True)
    assert len(set(tops[:4])) == len(set(tops[4:])) == 1
    assert tops[0] < tops[4]
    assert lefts[:4] == lefts[4:] == tuple(sorted(lefts[:4]))


def test_small_images_are_enlarged_crisply(tmp_path):
    image = np.zeros((8, 8), dtype=np.float32)
    image[::2, ::2] = image[1::2, 1::2] = 0.5  # a chess board of grey levels
    views(tmp_path / "v.png", [[image]])
    page = read(tmp_path / "v.png")
    top, left, bottom, right = place(page, (0, 0, 0))
    tile = page[top:bottom, left:right]
    assert tile.shape == (96, 96, 3)
    expected = np.kron((image * 255).round(), np.ones((12, 12))).astype(np.uint8)
    assert (tile == expected[..., None]).all()


def test_views_of_an_image_stand_side_by_side(tmp_path):
    first, second = [solid(i, 32) for i in range(9)], [solid(20 + i, 32) for i in range(9)]
    views(tmp_path / "v.png", [torch.from_numpy(np.stack(first)), second])
    page = read(tmp_path / "v.png")
    for i in range(9):
        a, b = (place(page, view[i][0, 0]) for view in (first, second))
        assert a[0] == b[0]
        assert 0 < b[1] - a[3] < 20
    corners = [place(page, image[0, 0])[:2] for image in first]
    assert corners == sorted(corners)
    assert len({top for top, _ in corners}) == 3  # 4, 4 and 1 images in a line


@pytest.mark.parametrize(
    "image", [np.full((8, 8, 3), -0.5), np.full((8, 8), np.nan), np.full((8, 8), 16.0), np.zeros((8, 8, 4))]
)
def test_what_is_no_picture_is_refused(tmp_path, image):
    with pytest.raises(ValueError, match="image must"):
        views(tmp_path / "v.png", [[image]])
    assert not (tmp_path / "v.png").exists()


def test_curves_draw_the_panels_that_have_metrics(tmp_path):
    images = np.arange(1, 61) * 512
    loss = {"loss": (images, np.linspace(8, 5, 60)), "images_per_second": (images, np.full(60, 9.0))}
    widths = []
    for number, more in enumerate([{}, {"knn/y": ([512], [0.4])}, {"mi/train": (images, images / 1e4)}]):
        loss |= more
        curves(tmp_path / f"{number}.png", loss)
        widths.append(read(tmp_path / f"{number}.png").shape)
    assert widths == [(360, 480, 3), (360, 960, 3), (360, 1440, 3)]
    curves(tmp_path / "empty.png", {})
    assert read(tmp_path / "empty.png").shape == (360, 480, 3)


def test_the_loss_of_a_random_guess_is_a_dashed_line_above_the_curve(tmp_path):
    images = [100, 200, 300]
    metrics = {"loss": (images, [5.0, 4.0, 3.0]), "loss/random_guess": (images, [8.0] * 3)}
    curves(tmp_path / "with.png", metrics)
    page = read(tmp_path / "with.png")
    dashes = (page == rgb("#777777")).all(axis=-1)
    row = dashes.sum(axis=1).argmax()
    assert 100 < dashes[row].sum() < 400  # of about 420 pixels: dashed, not drawn through
    blue = place(page[:, :420], rgb("C0"))
    assert row < blue[0] + 1


def test_bars_are_as_long_as_the_accuracies(tmp_path):
    accuracies(tmp_path / "a.png", {"knn/y": 0.8, "control/untrained/knn/y": 0.4, "control/pixels/knn": 0.2})
    page = read(tmp_path / "a.png")
    below = page[40:]  # the legend is above
    counts = {t: (below == rgb(colour)).all(axis=-1).sum(axis=1) for t, (_, colour) in COLUMNS.items()}
    lengths = {title: int(count.max()) for title, count in counts.items()}
    assert lengths["encoder"] == pytest.approx(2 * lengths["untrained"], abs=4)
    assert lengths["encoder"] == pytest.approx(4 * lengths["pixels"], abs=6)
    assert lengths["encoder"] > 400
    assert lengths["untrained (recalibrated)"] < 10  # no bar, a few pixels of lettering
    rows = [int(counts[title].argmax()) for title in ("encoder", "untrained", "pixels")]
    assert rows == sorted(rows)  # the encoder on top
    accuracies(tmp_path / "none.png", {})
    assert read(tmp_path / "none.png").shape[1] == page.shape[1]


def test_pictures_leave_no_trace_in_matplotlib(tmp_path):
    before = dict(matplotlib.rcParams)
    accuracies(tmp_path / "a.png", RESULTS)
    accuracies(tmp_path / "b.png", RESULTS)
    assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_pyplot_stays_unloaded():
    code = "import sys, trainer.evaluation.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_table_exactly():
    assert table(RESULTS) == TABLE
    assert (
        table({"knn/y": 0.5}).splitlines()[1]
        == "kNN, y          50.0          -                         -       -"
    )
    assert table({}) == "accuracy, %  encoder  untrained  untrained (recalibrated)  pixels"
