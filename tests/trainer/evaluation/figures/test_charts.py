"""The charts, read back pixel by pixel, and the table's exact text."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from tests.helpers.pages import place, read, rgb
from trainer.evaluation.figures.charts import COLUMNS, INK, PALE, accuracies, curves, table

RESULTS = {
    "probe/mlp/y": 0.5812,
    "probe/mlp/fc": 0.6466,
    "probe/mlp/pooled": 0.6,
    "probe/linear/y": 0.5,
    "probe/linear_sgd/y": 0.51,
    "probe/svm/y": 0.62,
    "probe/svm/y/std": 0.0034,
    "few_shot/5/linear/y": 0.3333,
    "few_shot/20/linear/y": 0.4,
    "knn/y": 1.0,
    "not_recalibrated/knn/y": 0.9,
    "control/untrained/probe/mlp/y": 0.387,
    "control/untrained_recalibrated/probe/mlp/y": 0.4,
    "control/pixels/probe/linear": 0.39,
    "control/pixels/probe/svm": 0.4,
    "control/pixels/probe/svm/std": 0.001,
    "control/pixels/few_shot/5/linear": 0.2,
    "control/pixels/knn": 0.05,
    "mi/local/held_out": 3.1,
}
TABLE = """\
accuracy, %           encoder  untrained  untrained (recalibrated)      pixels
5-shot linear, y         33.3          -                         -        20.0
20-shot linear, y        40.0          -                         -           -
linear, y                50.0          -                         -        39.0
linear, SGD, y           51.0          -                         -           -
MLP, pooled              60.0          -                         -           -
MLP, fc                  64.7          -                         -           -
MLP, y                   58.1       38.7                      40.0           -
SVM, y             62.0 ± 0.3          -                         -  40.0 ± 0.1
kNN, y                  100.0          -                         -         5.0"""


def test_curves_draw_the_panels_that_have_metrics(tmp_path):
    images = np.arange(1, 61) * 512
    metrics = {"loss": (images, np.linspace(8, 5, 60)), "images_per_second": (images, np.full(60, 9.0))}
    shapes = []
    for number, name in enumerate(["loss", "knn/y/online", "mi/global", "prior", "health/effective_rank"]):
        curves(tmp_path / f"{number}.png", metrics | {name: (images, images / 1e4)})
        metrics[name] = (images, images / 1e4)
        shapes.append(read(tmp_path / f"{number}.png").shape[:2])
    assert shapes == [(360, 480), (360, 960), (360, 1440), (720, 1440), (720, 1440)]
    assert (read(tmp_path / "3.png")[380:, 500:] == 255).all()  # places without a panel
    curves(tmp_path / "empty.png", {})
    assert read(tmp_path / "empty.png").shape == (360, 480, 3)


def test_the_loss_of_a_random_guess_is_a_dashed_line_above_the_curve(tmp_path):
    images = [100, 200, 300]
    metrics = {"local": (images, [5.0, 4.0, 3.0]), "local/random_guess": (images, [8.0] * 3)}
    curves(tmp_path / "with.png", metrics)
    page = read(tmp_path / "with.png")
    dashes = (page == rgb(PALE)).all(axis=-1)
    row = dashes.sum(axis=1).argmax()
    assert 100 < dashes[row].sum() < 400  # of about 420 pixels: dashed, not drawn through
    blue = place(page[:, :420], rgb("C0"))
    assert row < blue[0] + 1


def test_the_denoising_error_of_both_parts_is_drawn_below_that_of_answering_0(tmp_path):
    images = np.arange(1, 11) * 64
    metrics = {"loss": (images, np.linspace(800, 400, 10))}
    curves(tmp_path / "loss.png", metrics)
    for part in ("y", "w"):
        metrics[f"denoising/{part}"] = (images, np.linspace(0.9, 0.2, 10))
        metrics[f"denoising/{part}/zero"] = (images, np.full(10, 1.0))
    curves(tmp_path / "both.png", metrics)
    alone, both = read(tmp_path / "loss.png"), read(tmp_path / "both.png")
    assert both.shape == (360, 960, 3)  # a panel more
    assert (both == rgb(PALE)).all(2).sum() > (alone == rgb(PALE)).all(
        2
    ).sum() + 200  # and in it a dashed line


def test_the_loss_stands_beside_several_terms_and_not_beside_its_only_one(tmp_path):
    images, drawn = [100, 200, 300], []
    terms = {"local": (images, [5.0, 4.0, 3.0]), "global": (images, [2.0, 1.0, 1.0])}
    for number, names in enumerate([[], ["local"], ["local", "global"]]):
        metrics = {"loss": (images, [9.0, 8.0, 7.0])} | {name: terms[name] for name in names}
        curves(tmp_path / f"{number}.png", metrics)
        page = read(tmp_path / f"{number}.png")
        drawn.append([int((page == rgb(colour)).all(axis=-1).sum()) > 300 for colour in ("C0", "C1", INK)])
    assert drawn == [[True, False, False], [True, False, False], [True, True, True]]


def test_the_squared_error_has_a_logarithmic_axis(tmp_path):
    """What falls by equal factors is a straight line: in the middle it is in the middle of its heights."""
    images = np.linspace(0, 1000, 60)
    curves(tmp_path / "a.png", {"sse": (images, 10 ** (images / 500))})
    rows, columns = np.nonzero((read(tmp_path / "a.png") == rgb("C0")).all(axis=-1))
    middle = rows[columns == (columns.min() + columns.max()) // 2].mean()
    assert abs(middle - (rows.min() + rows.max()) / 2) < 6


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
    assert table({"knn/y": 0.5}).splitlines() == ["accuracy, %  encoder", "kNN, y          50.0"]
    assert table({}) == ""


def test_a_feature_of_another_name_has_its_row():
    rows = table({"probe/linear/y": 0.5, "probe/linear/layer3": 0.25}).splitlines()
    assert [row.split() for row in rows[1:]] == [["linear,", "y", "50.0"], ["linear,", "layer3", "25.0"]]
