"""Published figures: in columns of their own, with their source, and none that was merely recalled."""

import pytest

from tests.helpers.run_folders import WORDS, write_diffusion, write_run
from trainer.report import published
from trainer.report.generation import FID_PUBLISHED
from trainer.report.report import make_report

RECALLED = ("10.15", "0.76", "76.02", "14.62", "0.44", "42.75", "10.16")  # D2C's, from others' summaries
EVERY = [published.TABLE_1, published.DIM_CLASSIFICATION, published.DIM_SVM, published.DDIM_SAMPLES]


@pytest.fixture
def outputs(tmp_path):
    figures = {f"probe/{p}/{f}": 0.5 for p in ("mlp", "svm", "linear") for f in ("conv", "fc", "y")}
    write_run(tmp_path / "dim", [*WORDS["dim"], "objective.bound=jsd"], figures)
    write_run(tmp_path / "hybrid", WORDS["hybrid"], {"probe/linear/y": 0.5, "reconstruction/sse": 3.0})
    write_run(tmp_path / "moco", WORDS["moco"], {"probe/linear/y": 0.6})
    write_diffusion(tmp_path / "pixels", None, {"generation/samples/fid": 5.0})
    return tmp_path


def split(report):
    """The texts of all cells: ours and controls', and published ones."""
    ours, theirs = set(), set()
    for table in report.tables:
        for row in table.rows:
            for column in table.columns:
                text = column.text(row.cells.get(column.title))
                (theirs if column.published else ours).add((table.title, row.label, column.title, text))
    return ours, {cell for cell in theirs if cell[-1]}


def test_published_figures_stand_in_no_column_of_ours(outputs, monkeypatch):
    ours, theirs = split(make_report([outputs]))
    figures = [f for by_data in EVERY for rows in [by_data["CIFAR-10"]] for row in rows for f in row.figures]
    assert len(theirs) == len(figures) > 60
    for by_data in EVERY:
        monkeypatch.setattr(published, name_of(by_data), {})
    without, none = split(make_report([outputs]))
    assert not none
    published_rows = {cell for cell in ours if cell[1].startswith("published: ")}
    assert {cell[-1] for cell in published_rows} == {""}
    assert without == ours - published_rows


def name_of(by_data):
    return next(name for name, value in vars(published).items() if value is by_data)


def test_a_published_column_says_so_in_its_title_and_names_its_source(outputs):
    for table in make_report([outputs]).tables:
        for column in table.columns:
            assert bool(column.published) == column.title.endswith("published")
            if column.published:
                assert f"published figures: {column.published}" in table.notes


def test_no_published_column_without_runs_on_its_data(tmp_path):
    write_run(tmp_path / "digits", ["recipe=quickstart"], {"probe/mlp/conv": 0.5, "knn/y": 0.5})
    for table in make_report([tmp_path]).tables:
        assert not [column for column in table.columns if column.published]


def test_what_was_recalled_or_retold_is_not_there():
    figures = [
        f for by_data in EVERY for rows in by_data.values() for row in rows for f in row.figures.values()
    ]
    assert not set(figures) & set(RECALLED)
    methods = [row.method for by_data in EVERY for rows in by_data.values() for row in rows]
    assert not [name for name in methods if "D2C" in name or "DV" in name]


def test_published_digits_are_the_papers():
    rows = {row.method: row.figures for row in published.TABLE_1["CIFAR-100"]}
    assert rows["Hybrid"] == {"error": "3.3", "fid": "41.2", "accuracy": "46.7"}
    assert rows["MoCo-v2"] == {"accuracy": "49.04"}
    dim = {row.method: row.figures for row in published.DIM_CLASSIFICATION["CIFAR-10"]}
    assert dim["DIM(L) InfoNCE"] == {"mlp/conv": "75.21", "mlp/fc": "75.57", "mlp/y": "69.13"}
    svm = {row.method: row.figures for row in published.DIM_SVM["CIFAR-10"]}
    assert svm["DIM(L)"] == {"svm/conv": "63.25 ± 0.86", "svm/fc": "54.06 ± 3.6", "svm/y": "49.62 ± 0.3"}


@pytest.mark.parametrize(
    ("kind", "words", "table", "column", "figure"),
    [
        ("hybrid", [], "As Table 1", "FID, published", "34.6"),
        ("moco", [], "As Table 1", "accuracy, %, published", "78.3"),
        ("dim", ["objective.bound=jsd"], "Classification", "MLP y, %, published", "66.96"),
        ("dim", ["objective.bound=infonce"], "Classification", "MLP y, %, published", "69.13"),
        (
            "dim",
            ["objective.bound=jsd", "objective.gamma=0.1"],
            "Classification",
            "MLP y, %, published",
            "66.96",
        ),
        ("dim", ["objective.alpha=1", "objective.beta=0"], "Classification", "MLP y, %, published", "43.17"),
        (
            "dim",
            ["objective.bound=infonce", "objective.coordinates=1"],
            "Classification",
            "MLP y, %, published",
            "71.56",
        ),
        (
            "dim",
            ["objective.bound=nwj", "objective.critic.score=tanh"],
            "Classification",
            "MLP y, %, published",
            "",
        ),
        ("dim", ["objective.bound=jsd"], "SVMs", "SVM y, %, published", "49.62 ± 0.3"),
    ],
)
def test_the_published_figure_stands_beside_the_run_of_its_method(
    tmp_path, kind, words, table, column, figure
):
    figures = {f"probe/{p}/{f}": 0.5 for p in ("mlp", "svm", "linear") for f in ("conv", "y")}
    write_run(tmp_path / "run", [*WORDS[kind], *words], figures)
    (one,) = [t for t in make_report([tmp_path]).tables if t.title.startswith(table)]
    (ours,) = [row for row in one.rows if row.origin == "ours"]
    assert (ours.cells.get(column) or "") == figure


def test_only_ddim_on_pixels_stands_beside_the_published_ddim(tmp_path):
    write_diffusion(tmp_path / "ddim", None, {"generation/samples/fid": 5.0})
    write_diffusion(tmp_path / "edm", None, {"generation/samples/fid": 2.0}, process="edm")
    (table,) = [t for t in make_report([tmp_path]).tables if t.title.startswith("As Table 1")]
    beside = {row.label: row.cells.get("FID, published") for row in table.rows if row.origin == "ours"}
    assert beside == {"diffusion on pixels, ddim (eps)": "3.2", "diffusion on pixels, edm (eps)": None}
    generation = [t for t in make_report([tmp_path]).tables if t.title.startswith("Generation")]
    assert all(FID_PUBLISHED in table.columns for table in generation)
