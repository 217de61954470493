"""Runs of several seeds as one row: mean and spread against sums by hand, and which runs belong together."""

import math

import pytest

from tests.helpers.run_folders import WORDS, write_diffusion, write_run
from trainer.report.report import make_report
from trainer.report.tables import Column, Figure


def table(folders, title):
    (one,) = [t for t in make_report(folders).tables if t.title.startswith(title)]
    return one


def rows(folders, title="Runs"):
    return {row.label: row.cells for row in table(folders, title).rows}


def test_one_seed_has_no_spread():
    assert Figure.of([0.25], 100) == Figure(25.0, None, 1)
    assert Figure.of([]) is None


def test_two_seeds_have_half_of_their_range():
    assert Figure.of([1.0, 4.0]) == Figure(2.5, 1.5, 2)


def test_three_seeds_have_the_sample_standard_deviation():
    figure = Figure.of([1.0, 2.0, 6.0])
    assert figure.mean == 3.0
    assert figure.spread == pytest.approx(math.sqrt((4 + 1 + 9) / 2), rel=1e-15)
    assert figure.seeds == 3


def test_figures_that_are_not_finite_are_shown():
    assert Column("a").text(Figure.of([float("nan"), 1.0, 2.0])) == "nan ± nan"
    assert Column("a", None).text(Figure.of([float("inf")])) == "inf"


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (0.0032038, None, "0.00320"),
        (3.0615, 0.0513, "3.06 ± 0.05"),
        (35.70382, 1.25, "35.7 ± 1.2"),
        (745.2, 9.9, "745 ± 10"),
        (1416.4, None, "1,416"),
        (0.0, None, "0.00"),
        (-0.5, None, "-0.500"),
    ],
)
def test_three_digits_count_and_a_spread_has_as_many_decimals(value, spread, text):
    assert Column("a", None).text(Figure(value, spread, 2)) == text


def test_runs_that_differ_in_the_seed_alone_are_one_row(tmp_path):
    for seed, y, sse in ((0, 0.50, 3.0), (1, 0.52, 3.5), (2, 0.57, 2.5)):
        figures = {"probe/linear/y": y, "reconstruction/sse": sse}
        write_run(tmp_path / f"run{seed}", [*WORDS["hybrid"], f"seed={seed}"], figures)
    (cells,) = rows([tmp_path]).values()
    accuracy, error = cells["linear y, %"], cells["error an image"]
    assert accuracy.mean == pytest.approx(53.0)
    assert accuracy.spread == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert (error.mean, error.spread, error.seeds) == (3.0, 0.5, 3)
    assert cells["seeds"] == "0, 1, 2"
    assert (cells["images seen"], cells["D = |y| + |w|"]) == (Figure(6400), Figure(1536))


def test_what_is_not_fingerprinted_parts_no_seeds(tmp_path):
    write_run(tmp_path / "a", WORDS["hybrid"], {"knn/y": 0.5})
    write_run(tmp_path / "b", [*WORDS["hybrid"], "seed=1", "log.every=999", "accumulate=2"], {"knn/y": 0.6})
    assert [cells["seeds"] for cells in rows([tmp_path]).values()] == ["0, 1"]


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (["optimizer.lr=3e-4"], "hybrid, MoCo-v2, ω 0.1 (nvae pooled), optimizer.lr=0.0003"),
        (["objective.omega=0.3"], "hybrid, MoCo-v2, ω 0.3 (nvae pooled)"),
        (["objective.detach_y=true"], "hybrid, MoCo-v2, ω 0.1, y detached (nvae pooled)"),
    ],
)
def test_other_recipes_are_other_rows_that_say_what_differs(tmp_path, words, label):
    write_run(tmp_path / "a", WORDS["hybrid"], {"knn/y": 0.5})
    write_run(tmp_path / "b", [*WORDS["hybrid"], "seed=1", *words], {"knn/y": 0.6})
    labels = rows([tmp_path])
    assert len(labels) == 2
    assert labels[label]["seeds"] == "1"


def test_rows_that_differ_in_much_bear_their_folders_name(tmp_path):
    write_run(tmp_path / "first", WORDS["moco"], {"knn/y": 0.5})
    words = ["optimizer.lr=0.1", "objective.temperature=0.3", "objective.momentum=0.9"]
    write_run(tmp_path / "second", [*WORDS["moco"], *words], {"knn/y": 0.5})
    assert sorted(rows([tmp_path])) == ["MoCo-v2 (resnet18), first", "MoCo-v2 (resnet18), second"]


def test_other_numbers_of_images_are_other_rows(tmp_path):
    write_run(tmp_path / "a", WORDS["moco"], {"knn/y": 0.5}, images=6400)
    write_run(tmp_path / "b", [*WORDS["moco"], "seed=1"], {"knn/y": 0.6}, images=12800)
    assert sorted(rows([tmp_path])) == ["MoCo-v2 (resnet18), images=12800", "MoCo-v2 (resnet18), images=6400"]


def test_a_repeated_seed_counts_once_and_is_named(tmp_path):
    write_run(tmp_path / "a", WORDS["moco"], {"knn/y": 0.5})
    write_run(tmp_path / "b", WORDS["moco"], {"knn/y": 0.7})
    report = make_report([tmp_path])
    (row,) = next(t for t in report.tables if t.title == "Runs").rows
    assert row.cells["kNN y, %"] == Figure(50.0)
    (line,) = report.lines
    assert line == f"{tmp_path}/b: left out, it repeats {tmp_path}/a (recipe, seed and images)"


def test_diffusions_on_two_seeds_of_an_encoder_are_seeds_of_one_row(tmp_path):
    for seed, distance in ((0, 700.0), (1, 760.0)):
        source = write_run(tmp_path / f"hybrid{seed}", [*WORDS["hybrid"], f"seed={seed}"], {"knn/y": 0.5})
        figures = {"generation/samples/frechet_efficientnet_lite0": distance}
        write_diffusion(tmp_path / f"flow{seed}", source, figures, seed=seed, process="flow")
    labels = rows([tmp_path])
    (label,) = [label for label in labels if label.startswith("diffusion")]
    assert label == "diffusion on latents, flow (eps), of hybrid, MoCo-v2, ω 0.1 (nvae pooled)"
    assert labels[label]["Fréchet: efficientnet_lite0"] == Figure(730.0, 30.0, 2)
    assert labels[label]["D = |y| + |w|"] == Figure(1536)


def test_from_is_found_beside_the_run_where_its_path_leads_nowhere(tmp_path):
    write_run(tmp_path / "encoder", WORDS["hybrid"], {"knn/y": 0.5})
    write_diffusion(tmp_path / "flow", "outputs/encoder", {"generation/samples/images": 500})
    assert any(label.endswith("of hybrid, MoCo-v2, ω 0.1 (nvae pooled)") for label in rows([tmp_path]))


def test_an_encoder_that_was_not_evaluated_names_its_diffusions(tmp_path):
    for seed in range(2):
        source = write_run(tmp_path / f"encoder{seed}", [*WORDS["hybrid"], f"seed={seed}"], None)
        write_diffusion(tmp_path / f"flow{seed}", source, {"generation/samples/fid": 5.0 + seed}, seed=seed)
    ((label, cells),) = rows([tmp_path]).items()
    assert label == "diffusion on latents, ddim (eps), of hybrid, MoCo-v2, ω 0.1 (nvae pooled)"
    assert cells["FID"] == Figure(5.5, 0.5, 2)
    assert cells["D = |y| + |w|"] == Figure(1536)
    (table,) = [t for t in make_report([tmp_path]).tables if t.title.startswith("As Table 1")]
    assert table.rows[0].label == label


def test_a_seed_that_was_not_evaluated_is_none_of_its_row(tmp_path):
    write_run(tmp_path / "a", [*WORDS["moco"], "seed=5"], {"knn/y": 0.5})
    write_run(tmp_path / "b", WORDS["moco"], None)
    (cells,) = rows([tmp_path]).values()
    assert (cells["kNN y, %"], cells["seeds"]) == (Figure(50.0), "5")


def test_a_diffusion_without_its_encoder_is_named_by_its_folder(tmp_path):
    write_diffusion(tmp_path / "flow", "elsewhere/encoder", {"generation/samples/fid": 5.0}, process="edm")
    report = make_report([tmp_path])
    assert {table.data for table in report.tables} == {"data unknown", "all data"}
    assert "diffusion on latents, edm (eps), of encoder" in rows([tmp_path])


def test_the_spread_is_said_where_there_is_one(tmp_path):
    write_run(tmp_path / "a", WORDS["moco"], {"knn/y": 0.5})
    assert not [note for note in table([tmp_path], "Runs").notes if note.startswith("±")]
    write_run(tmp_path / "b", [*WORDS["moco"], "seed=1"], {"knn/y": 0.6})
    (note,) = [note for note in table([tmp_path], "Runs").notes if note.startswith("±")]
    assert "half of the range" in note
    assert "sample standard deviation" in note
