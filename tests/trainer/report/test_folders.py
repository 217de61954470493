"""Folders as they are: unfinished, failed, damaged, foreign. Each is a line, and none ends the report."""

import json
import shutil
import sys

import pytest

from tests.helpers.command_lines import Done, mistake, process, script, tiny
from tests.helpers.run_folders import SPEED, WORDS, write_diffusion, write_run
from trainer.report.__main__ import main
from trainer.report.parameters import count_parameters
from trainer.report.records import read_run
from trainer.report.report import make_report
from trainer.report.tables import Figure

FIGURES = {"probe/linear/y": 0.5, "knn/y": 0.4}


@pytest.fixture
def outputs(tmp_path):
    """A folder of outputs with a run that is whole."""
    write_run(tmp_path / "outputs" / "whole", WORDS["moco"], FIGURES)
    return tmp_path / "outputs"


def report(capsys, *words) -> Done:
    status = main([str(word) for word in words])
    return Done(status, *capsys.readouterr())


def lines(outputs):
    """The lines of a report that still has the figures of the run that is whole."""
    made = make_report([outputs])
    (table,) = [table for table in made.tables if table.title == "Runs"]
    assert Figure(50.0) in [row.cells["linear y, %"] for row in table.rows]
    return made.lines


# ---- where runs are ------------------------------------------------------------------------------


def test_an_empty_folder_is_one_line_that_says_what_was_expected(tmp_path, capsys):
    line = mistake(report(capsys, tmp_path))
    assert line.startswith(f"{tmp_path}: no run there; expected a folder of runs such as outputs/")


def test_a_folder_that_is_missing_or_a_file_is_one_line(tmp_path, capsys):
    assert "does not exist; expected" in mistake(report(capsys, tmp_path / "gone"))
    (tmp_path / "file").write_text("")
    assert "no folder; expected" in mistake(report(capsys, tmp_path / "file"))


def test_a_folder_that_is_a_run_is_reported_alone(outputs, capsys):
    write_run(outputs / "other", WORDS["hybrid"], FIGURES)
    done = report(capsys, outputs / "whole")
    assert (done.status, done.err) == (0, "")
    assert "MoCo-v2 (resnet18)" in done.out
    assert "hybrid," not in done.out


def test_runs_lie_at_any_depth_and_in_several_folders(outputs, tmp_path, capsys):
    write_run(outputs / "sweep" / "a" / "deep", WORDS["hybrid"], FIGURES)
    write_run(tmp_path / "more" / "dim", WORDS["dim"], FIGURES)
    out = report(capsys, outputs, tmp_path / "more").out
    assert all(name in out for name in ("MoCo-v2 (resnet18)", "hybrid, MoCo-v2, ω 0.1", "DIM(L)"))


def test_links_are_followed_and_a_circle_ends(outputs, tmp_path):
    elsewhere = write_run(tmp_path / "elsewhere", WORDS["hybrid"], FIGURES)
    (outputs / "link").symlink_to(elsewhere)
    (outputs / "folder").mkdir()
    (outputs / "folder" / "circle").symlink_to(outputs)
    labels = [row.label for table in make_report([outputs]).tables for row in table.rows]
    assert any(label.startswith("hybrid") for label in labels)


def test_a_foreign_folder_is_a_line(outputs):
    (outputs / "photos").mkdir()
    (outputs / "mlartifacts" / "1").mkdir(parents=True)
    (outputs / "mlflow.db").write_text("")
    assert lines(outputs) == [f"{outputs / 'photos'}: no run there"]


def test_an_evaluation_of_an_earlier_checkpoint_is_no_run(outputs):
    earlier = outputs / "whole" / "evaluations" / "images-000000000128"
    earlier.mkdir(parents=True)
    (earlier / "results.json").write_text(json.dumps({"probe/linear/y": 0.1}))
    assert lines(outputs) == []


# ---- runs that are not whole ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "why", "line"),
    [
        ("failed", "CUDA out of memory\nat line 5", "failed at 640 images: CUDA out of memory at line 5"),
        ("stopped", "SIGTERM", "stopped at 640 images: SIGTERM"),
        ("", "", "not finished: 640 of 256,000 images in its journal"),
    ],
)
def test_a_run_that_did_not_end_is_a_line(outputs, status, why, line):
    write_run(outputs / "run", WORDS["moco"], None, images=640, status=status, why=why)
    assert lines(outputs) == [f"{outputs / 'run'}: {line}"]


def test_figures_of_a_stopped_run_are_a_row_and_a_line(outputs):
    write_run(outputs / "run", WORDS["hybrid"], {"knn/y": 0.3}, images=640, status="stopped")
    assert lines(outputs) == [f"{outputs / 'run'}: stopped at 640 images"]
    labels = [row.label for table in make_report([outputs]).tables for row in table.rows]
    assert "hybrid, MoCo-v2, ω 0.1 (nvae pooled)" in labels


def test_a_run_that_was_not_evaluated_is_told_how(outputs):
    run = write_run(outputs / "run", WORDS["hybrid"], None)
    assert lines(outputs) == [f"{run}: not evaluated; recipe=evaluate from={run} measures it"]


def test_older_figures_of_a_longer_run_are_named(outputs):
    run = write_run(outputs / "run", WORDS["hybrid"], FIGURES)
    (run / "done").write_text("9600\n")
    (line,) = lines(outputs)
    assert line.startswith(f"{run}: its figures are of 6,400 images, and it has seen 9,600")
    assert read_run(run).images == 6400


GARBAGE = b"\xff\xfe\x00garbage\x00\n\x80" * 9
DAMAGE = {
    "recipe.yaml": "recipe.yaml",
    "results.json": "results.json: ",
    "world.json": "world.json is damaged",
    "done": "done is damaged",
    "journal.jsonl": "journal.jsonl ",
    "checkpoints/images-000000006400/manifest.json": "checkpoint images-000000006400 has no manifest",
}


@pytest.mark.parametrize("content", [b"", GARBAGE, b"[]\n", b"null\n", b"[" * 3000, None], ids=range(6))
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_a_line(outputs, name, content):
    """None: a folder in the file's place."""
    run = write_run(outputs / "run", WORDS["hybrid"], {"knn/y": 0.3}, tensors={"model/encoder.a": [3]})
    (run / name).unlink()
    if content is None:
        (run / name).mkdir()
    else:
        (run / name).write_bytes(content[:300] if name == "recipe.yaml" else content)  # YAML takes seconds
    reported = lines(outputs)
    assert all(line.startswith(f"{run}: ") for line in reported)
    assert all("\n" not in line for line in reported)
    assert any(DAMAGE[name] in line for line in reported)


@pytest.mark.parametrize(
    "recipe",
    [
        "task: pretrain\n",
        "task: evaluate\nfrom: outputs/whole\n",
        "objective: 5\n",
        "objective: {kind: [1]}\n",
        "objective: {kind: hybrid}\n",
        "objective: {kind: hybrid, contrast: {kind: moco}, alpha: 1}\n",
        "objective: {kind: moco}\nencoder: {kind: nvae}\n",
        "objective: {kind: moco}\nencoder: 5\n",
        "objective: {kind: diffusion}\nfrom: x\nseed: a\n",
        "objective: {kind: diffusion}\ndata: {source: cifar10}\n",
    ],
)
def test_a_recipe_of_no_run_is_a_line(outputs, recipe):
    run = write_run(outputs / "run", WORDS["hybrid"], {"knn/y": 0.3})
    (run / "recipe.yaml").write_text(recipe)
    (line,) = lines(outputs)
    assert line.startswith(f"{run}: recipe.yaml is ")


def test_a_run_of_another_version_is_read_as_it_stands(outputs):
    run = write_run(outputs / "run", WORDS["hybrid"], {"knn/y": 0.3})
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text() + "tomorrow: 5\n")
    (line,) = lines(outputs)
    assert line.startswith(f"{run}: recipe.yaml is read as it stands: ")
    assert "tomorrow" in line
    labels = [row.label for table in make_report([outputs]).tables for row in table.rows]
    assert "hybrid, MoCo-v2, ω 0.1 (nvae pooled)" in labels


def test_the_size_of_an_unknown_encoders_latent_is_the_measured_one(outputs):
    run = write_run(outputs / "run", WORDS["hybrid"], {"knn/y": 0.3, "reconstruction/latent_size": 900.0})
    text = (run / "recipe.yaml").read_text().replace("kind: nvae", "kind: of_tomorrow")
    (run / "recipe.yaml").write_text(text)
    (table,) = [table for table in make_report([run]).tables if table.title == "Runs"]
    (row,) = table.rows
    assert row.label == "hybrid, MoCo-v2, ω 0.1 (of_tomorrow pooled)"
    assert row.cells["D = |y| + |w|"] == Figure(900)


def test_a_run_without_its_recipe_is_a_line(outputs):
    run = write_run(outputs / "run", WORDS["hybrid"], {"knn/y": 0.3})
    (run / "recipe.yaml").unlink()
    (line,) = lines(outputs)
    assert line.startswith(f"{run}: recipe.yaml is missing")


def test_only_unfinished_runs_are_lines_alone(tmp_path, capsys):
    write_run(tmp_path / "run", WORDS["moco"], None, status="failed", why="no room")
    done = report(capsys, tmp_path)
    assert (done.status, done.err) == (0, "")
    assert done.out == f"- {tmp_path / 'run'}: failed at 6,400 images: no room\n"


# ---- what a run's files say ----------------------------------------------------------------------


def test_hours_are_those_of_training(outputs):
    """Half of 6,400 images at SPEED, half at half of it; the time between records says nothing."""
    assert read_run(outputs / "whole").hours == pytest.approx((3200 / SPEED + 3200 / (SPEED / 2)) / 3600)


def test_the_device_and_the_number_of_processes(outputs):
    assert read_run(outputs / "whole").device == "cpu"
    (outputs / "whole" / "world.json").write_text('{"processes": 8, "device": "NVIDIA H200"}')
    assert read_run(outputs / "whole").device == "8 x NVIDIA H200"


def test_parameters_are_counted_by_part():
    tensors = {
        "model/contrast.encoder.conv.weight": [4, 3, 3, 3],
        "model/contrast.encoder.norm.running_mean": [4],
        "model/contrast.key_encoder.conv.weight": [4, 3, 3, 3],
        "model/contrast.head.weight": [5, 4],
        "model/decoder.bias": [7],
        "optimizer/exp_avg/contrast.encoder.conv.weight": [4, 3, 3, 3],
        "optimizer/exp_avg/contrast.head.weight": [5, 4],
        "optimizer/exp_avg/decoder.bias": [7],
        "progress/images": [],
    }
    shapes = {name: {"shape": shape} for name, shape in tensors.items()}
    assert count_parameters(shapes, diffusion=False) == {"encoder": 108, "decoder": 7}
    without = {name: shape for name, shape in shapes.items() if not name.startswith("optimizer/")}
    assert count_parameters(without, diffusion=False) == {"encoder": 108, "decoder": 7}


def test_a_denoiser_is_counted_once_without_its_average():
    tensors = {"model/network.conv.weight": [10, 2], "model/average.conv.weight": [10, 2], "model/mean": [3]}
    shapes = {name: {"shape": shape} for name, shape in tensors.items()}
    assert count_parameters(shapes, diffusion=True) == {"denoiser": 20}
    shapes["optimizer/exp_avg/network.conv.weight"] = {"shape": [10, 2]}
    assert count_parameters(shapes, diffusion=True) == {"denoiser": 20}


def test_parameters_come_from_the_journal_where_no_checkpoint_is_left(outputs):
    tag = {"images": 0, "time": 1.0, "kind": "tag", "name": "encoder parameters", "value": 321}
    with open(outputs / "whole" / "journal.jsonl", "a") as journal:
        journal.write(json.dumps(tag) + "\n")
    assert read_run(outputs / "whole").parameters == {"encoder": 321}
    run = write_diffusion(outputs / "pixels", None, {"generation/samples/fid": 5.0})
    with open(run / "journal.jsonl", "a") as journal:
        journal.write(json.dumps(tag | {"name": "parameters", "value": 99}) + "\n")
    assert read_run(run).parameters == {"denoiser": 99}


@pytest.mark.slow
def test_a_real_run(digits, tmp_path, capsys):
    """What training wrote, read without torch: counts as the run's own, figures as in results.json."""
    words = ("evaluate.at_end=true", "evaluate.mlp=null", "evaluate.controls=false", "evaluate.few_shot=null")
    assert script(capsys, *tiny(tmp_path / "outputs", digits.root, *words)).status == 0
    run = tmp_path / "outputs" / "quickstart"
    record = read_run(run)
    tags = {}
    for line in (run / "journal.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["kind"] == "tag":
            tags[entry["name"]] = entry["value"]
    assert record.parameters == {"encoder": tags["encoder parameters"]}
    assert (record.images, record.device, record.remarks) == (256, "cpu", [])
    assert 0 < record.hours < 1
    (table,) = [table for table in make_report([run]).tables if table.title == "Runs"]
    results = json.loads((run / "results.json").read_text())
    (row,) = table.rows
    assert row.label == "DIM(L) JSD (dim)"
    assert row.cells["linear y, %"] == Figure(100 * results["probe/linear/y"])
    assert row.cells["kNN y, %"] == Figure(100 * results["knn/y"])
    shutil.rmtree(run / "checkpoints")
    assert read_run(run).parameters == {"encoder": tags["encoder parameters"]}


def test_the_report_does_not_wait_for_torch(outputs):
    code = (
        "import sys; from trainer.report.__main__ import main; main(sys.argv[1:]); "
        "print(sorted({'torch', 'numpy', 'matplotlib', 'mlflow', 'accelerate'} & set(sys.modules)))"
    )
    done = process(sys.executable, "-c", code, outputs)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "[]"
