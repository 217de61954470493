"""What diffusions draw: sampling seeds as one figure, other drawings apart, distances by their images."""

import json
import math

import pytest

from tests.helpers.run_folders import WORDS, write_diffusion, write_run
from trainer.recipe.drawing import Drawing
from trainer.report.drawings import drawing_of, parse_drawing
from trainer.report.records import read_run
from trainer.report.report import make_report
from trainer.report.tables import Figure
from trainer.tasks.sample import name_of

EXT = "Fréchet: ext"
OWN = "images-000000006400-flow-heun-25-seed"


def figures(distance, images=500, row="samples", measure="frechet_ext"):
    return {f"generation/{row}/{measure}": distance, f"generation/{row}/images": images}


def evaluate(run, name, results):
    """Figures as `recipe=measure` leaves them where they are not of the run's own drawing."""
    (run / "evaluations" / name).mkdir(parents=True)
    (run / "evaluations" / name / "results.json").write_text(json.dumps(results))


def generation(*folders):
    """Title -> table."""
    return {t.title: t for t in make_report(list(folders)).tables if t.title.startswith("Generation")}


def cells(table):
    return {row.label: row.cells for row in table.rows if row.origin == "ours"}


@pytest.fixture
def flow(tmp_path):
    return write_diffusion(tmp_path / "flow", None, figures(10.0), process="flow")


# ---- sampling seeds ------------------------------------------------------------------------------


def test_sampling_seeds_of_a_run_are_one_figure_that_says_how_many(flow):
    evaluate(flow, f"{OWN}-1", figures(12.0))
    evaluate(flow, f"{OWN}-7", figures(17.0))
    (table,) = generation(flow).values()
    assert cells(table)["samples"][EXT] == Figure(13.0, pytest.approx(math.sqrt((9 + 1 + 16) / 2)), 3)
    assert cells(table)["samples"]["images"] == Figure(500.0, None, 3)
    assert "sampling seeds: 0, 1, 7" in table.notes
    assert any(note.startswith("± is half of the range") for note in table.notes)
    (runs,) = [t for t in make_report([flow]).tables if t.title == "Runs"]
    assert runs.rows[0].cells[f"{EXT}, 500 images"] == Figure(10.0)  # of the run's own seed


def test_the_runs_own_figures_stand_before_an_evaluation_of_the_same_seed(flow):
    evaluate(flow, f"{OWN}-0", figures(99.0))
    (table,) = generation(flow).values()
    assert cells(table)["samples"][EXT] == Figure(10.0)


def test_of_several_runs_each_counts_once_with_the_mean_over_its_seeds(flow, tmp_path):
    write_diffusion(tmp_path / "other", None, figures(20.0), process="flow", seed=3)
    evaluate(flow, f"{OWN}-1", figures(14.0))
    (table,) = generation(tmp_path).values()
    assert cells(table)["samples"][EXT] == Figure(16.0, 4.0, 2)  # of 12 and 20
    assert "sampling seeds: 0, 1; 3" in table.notes
    assert any(note.startswith("each run counts once") for note in table.notes)


def test_rows_of_other_seeds_name_theirs(flow):
    evaluate(flow, f"{OWN}-1", figures(12.0) | figures(3.0, row="test"))
    (table,) = generation(flow).values()
    assert {label: row["sampling seeds"] for label, row in cells(table).items()} == {
        "test images": "1",
        "samples": "0, 1",
    }


# ---- drawings and checkpoints --------------------------------------------------------------------


def test_other_drawings_and_checkpoints_are_tables_of_their_own(flow):
    evaluate(flow, "images-000000006400-flow-heun-3-seed-0", figures(30.0))
    evaluate(flow, "images-000000006400-flow-heun-3-seed-1", figures(32.0))
    evaluate(flow, "images-000000006400-flow-euler-25-guidance-2-seed-0", figures(40.0))
    evaluate(flow, "images-000000003200-flow-heun-25-seed-0", figures(50.0))
    evaluate(flow, "images-000000003200-of_tomorrow-seed-0", figures(60.0))
    name = "Generation: diffusion on pixels, flow (eps)"
    distances = {title: cells(table)["samples"][EXT] for title, table in generation(flow).items()}
    assert distances == {
        name: Figure(10.0),
        f"{name}; drawn by flow euler, 25 steps, guidance 2": Figure(40.0),
        f"{name}; drawn by flow heun, 3 steps": Figure(31.0, 1.0, 2),
        f"{name}; checkpoint of 3,200 images": Figure(50.0),
        f"{name}; drawn by of_tomorrow; checkpoint of 3,200 images": Figure(60.0),
    }
    assert next(iter(generation(flow))) == name


def test_runs_that_draw_otherwise_are_other_rows(flow, tmp_path):
    write_diffusion(tmp_path / "few", None, figures(20.0), process="flow", seed=1, draw={"steps": 3})
    (table,) = [t for t in make_report([tmp_path]).tables if t.title == "Runs"]
    assert {row.label.partition("draw=")[2].strip("'\""): row.cells["seeds"] for row in table.rows} == {
        "flow heun, 25 steps": "0",
        "flow heun, 3 steps": "1",
    }


@pytest.mark.parametrize(
    ("process", "draw", "said"),
    [
        ("flow", {}, "flow heun, 25 steps"),
        ("ddim", {"eta": 0.5, "steps": 1000}, "ddim euler, 1,000 steps, eta 0.5"),
        ("edm", {"sampler": "euler", "guidance": 1e-5}, "edm euler, 18 steps, guidance 1e-05"),
        ("ddim", {"guidance": 0.0, "eta": 1.0}, "ddim euler, 50 steps, eta 1, guidance 0"),
    ],
)
def test_folders_and_recipes_say_the_same_of_a_drawing(process, draw, said):
    _, _, name = name_of(Drawing(**draw), process, 21, 6400).split("-", 2)
    assert parse_drawing(name) == (said, 21)
    assert drawing_of({"objective": {"process": process}, "draw": draw}) == said


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("flow-heun-25-eta-0-guidance-1.0-seed-4", ("flow heun, 25 steps", 4)),
        ("flow-heun-25-seed-4-shift-3", ("flow heun, 25 steps, shift 3", 4)),
        ("flow-heun-25-in-halves", ("flow heun, 25 steps, in-halves", None)),
        ("flow-heun-25-eta-1.2.3-seed-0", ("flow heun, 25 steps, eta-1.2.3", 0)),
        ("anything", ("anything", None)),
    ],
)
def test_names_of_other_versions_are_read_as_far_as_they_go(name, parsed):
    assert parse_drawing(name) == parsed


def test_a_recipe_without_a_known_drawing_says_none():
    assert drawing_of({"objective": {"process": "of_tomorrow"}}) == ""
    assert drawing_of({"objective": {"process": "flow"}, "draw": {"sampler": "rk45"}}) == ""
    assert drawing_of({"objective": {"process": "flow"}, "draw": 5}) == ""


def test_a_damaged_evaluation_is_a_line(flow):
    evaluate(flow, f"{OWN}-1", {})
    (flow / "evaluations" / f"{OWN}-1" / "results.json").write_text("[")
    report = make_report([flow])
    (line,) = report.lines
    assert line.startswith(f"{flow}: evaluations/{OWN}-1/results.json: damaged")


def test_a_run_of_evaluations_alone_has_a_table_and_a_line(tmp_path):
    run = write_diffusion(tmp_path / "flow", None, None, process="flow")
    evaluate(run, f"{OWN}-1", figures(12.0))
    (table,) = generation(run).values()
    assert cells(table)["samples"][EXT] == Figure(12.0)
    (line,) = make_report([run]).lines
    assert line.startswith(f"{run}: not evaluated with its own drawing and seed; recipe=measure from={run} ")


def test_evaluations_in_the_journal_say_nothing_of_the_runs_own_figures(flow):
    record = {"images": 9600, "time": 1.0, "kind": "metric", "name": f"results/{OWN}-1/a", "value": 1.0}
    with open(flow / "journal.jsonl", "a") as journal:
        journal.write(json.dumps(record) + "\n")
    assert read_run(flow).images == 6400


# ---- numbers of images ---------------------------------------------------------------------------


def test_rows_of_other_numbers_of_images_are_never_averaged_and_say_so(flow):
    evaluate(flow, f"{OWN}-1", figures(70.0, 2) | figures(3.0, row="test") | figures(4.0, row="blur_2"))
    (table,) = generation(flow).values()
    assert {label: row[EXT] for label, row in cells(table).items()} == {
        "test images": Figure(3.0),
        "samples": Figure(10.0),
        "samples, 2 images": Figure(70.0),
        "blur 2 x 2": Figure(4.0),
    }
    assert table.columns[0].title == "images"
    assert "figures are of 500 images where their row says no other number" in table.notes


def test_a_number_of_images_that_is_not_known_is_said(flow):
    evaluate(flow, f"{OWN}-1", {"generation/samples/frechet_ext": 5.0})
    (table,) = generation(flow).values()
    assert cells(table)["samples, number of images not known"][EXT] == Figure(5.0)


def test_tables_of_runs_have_a_column_for_each_number_of_images(flow, tmp_path):
    write_diffusion(
        tmp_path / "edm", None, figures(9.0, 60) | figures(7.0, 2, "gaussian_full"), process="edm"
    )
    tables = {table.title: table for table in make_report([tmp_path]).tables}
    for title in ("Runs", "As Table 1 of the hybrid paper"):
        rows = cells(tables[title])
        some = [column.title for column in tables[title].columns if column.title.startswith("Fréchet")]
        assert some == [f"{EXT}, 500 images", f"{EXT}, 60 images"] + [f"{EXT}, 2 images"] * (title == "Runs")
        assert rows["diffusion on pixels, flow (eps)"][f"{EXT}, 500 images"] == Figure(10.0)
        assert rows["diffusion on pixels, edm (eps)"][f"{EXT}, 60 images"] == Figure(9.0)
        assert f"{EXT}, 60 images" not in rows["diffusion on pixels, flow (eps)"]


def test_an_fid_of_other_than_50000_images_is_marked(tmp_path):
    whole = figures(3.0, 50_000, measure="fid")
    write_diffusion(tmp_path / "a", None, whole | figures(4.0, 10_000, "test", "fid"), process="flow")
    write_diffusion(tmp_path / "b", None, figures(5.0, 5_000, measure="fid"), process="edm")
    tables = {table.title: table for table in make_report([tmp_path]).tables}
    for title in ("Runs", "As Table 1 of the hybrid paper"):
        titles = [c.title for c in tables[title].columns if c.title.startswith("FID") and not c.published]
        assert titles == ["FID, 50,000 images", "FID, 5,000 images (not 50,000)"]
        assert any(note.startswith("FID: the published ones are of 50,000") for note in tables[title].notes)
    rows = cells(tables["Generation: diffusion on pixels, flow (eps)"])
    assert (rows["samples"]["FID"], "FID (not of 50,000 images)" in rows["samples"]) == (Figure(3.0), False)
    (test,) = [row for label, row in rows.items() if label.startswith("test images")]
    assert (test["FID (not of 50,000 images)"], "FID" in test) == (Figure(4.0), False)


# ---- a diffusion alone ---------------------------------------------------------------------------


def test_a_diffusion_alone_is_named_by_the_encoder_that_it_names(tmp_path):
    source = write_run(tmp_path / "encoders" / "hybrid", WORDS["hybrid"], {"knn/y": 0.5})
    run = write_diffusion(tmp_path / "flow", source, figures(10.0), process="flow")
    report = make_report([run])
    assert [table.data for table in report.tables] == ["CIFAR-10, 32 px"] * 3 + ["all data"]
    (table,) = [t for t in report.tables if t.title == "Runs"]
    (row,) = table.rows  # the encoder is none
    assert row.label == "diffusion on latents, flow (eps), of hybrid, MoCo-v2, ω 0.1 (nvae pooled)"
    assert row.cells["D = |y| + |w|"] == Figure(1536)
    assert (report.lines, [record.folder for record in report.runs]) == ([], [run])
    assert any(row.cells.get("kNN y, %") for t in make_report([run, source]).tables for row in t.rows)


def test_an_encoder_that_is_damaged_is_no_line_of_its_diffusion(tmp_path):
    source = write_run(
        tmp_path / "encoders" / "hybrid", WORDS["hybrid"], None, status="failed", why="no room"
    )
    run = write_diffusion(tmp_path / "flow", source, figures(10.0), process="flow")
    assert make_report([run]).lines == []
    (source / "recipe.yaml").write_text("5\n")
    assert {table.data for table in make_report([run]).tables} == {"data unknown", "all data"}


@pytest.mark.parametrize(
    ("more", "words"),
    [({}, " evaluate.extractor=efficientnet_lite0"), ({"evaluate": {"extractor": "efficientnet_lite2"}}, "")],
)
def test_a_diffusion_that_was_not_evaluated_is_named_with_the_command_for_it(tmp_path, more, words):
    run = write_diffusion(tmp_path / "flow", None, None, process="flow", **more)
    assert make_report([run]).lines == [f"{run}: not evaluated; recipe=measure from={run}{words} measures it"]


def test_older_figures_of_a_longer_diffusion_name_its_command(flow):
    (flow / "done").write_text("9600\n")
    (line,) = make_report([flow]).lines
    assert line.endswith(
        f"and it has seen 9,600; recipe=measure from={flow} evaluate.extractor=efficientnet_lite0 measures "
        "the newest"
    )


def test_statistics_that_measuring_keeps_are_no_amiss(flow, tmp_path):
    (tmp_path / "statistics").mkdir()
    (tmp_path / "statistics" / f"{'0a' * 16}.safetensors").write_bytes(b"")
    assert make_report([tmp_path]).lines == []
    (tmp_path / "photos").mkdir()
    assert make_report([tmp_path]).lines == [f"{tmp_path / 'photos'}: no run there"]
