"""What a run leaves: pictures, with and without labels, and what a picture that fails may cost."""

import json
import shutil

import numpy as np

from tests.helpers.command_lines import script, tiny
from trainer.recipe import loading
from trainer.recipe.loading import load
from trainer.runs.folder import RunFolder
from trainer.tasks import report
from trainer.tracking.journal import Journal, read


def test_data_without_classes_has_its_pictures_and_its_health(capsys, digits, tmp_path):
    root = shutil.copytree(digits.root, tmp_path / "digits")
    header = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(header | {"classes": []}))
    for path in root.glob("*/*.npy"):
        index = np.load(path, allow_pickle=False)
        index["label"] = -1
        np.save(path, index, allow_pickle=False)
    views = "data.views=[{flip: 0.5, crop: {scale: {low: 0.2, high: 1.0}}}]"
    done = script(capsys, *tiny(tmp_path / "outputs", root, "evaluate.every=256", views))
    assert done.status == 0, done.err
    assert "was not drawn" not in done.err
    assert "recipe=evaluate" not in done.out  # which needs labels
    folder = tmp_path / "outputs" / "quickstart"
    pictures = {"curves.png", "neighbours.png", "tsne.png", "views.png"}
    assert {path.name for path in (folder / "figures").iterdir()} == pictures
    records = [record for record, _ in read(folder / "journal.jsonl")]
    assert {f"figures/{name}" for name in pictures} <= {record["name"] for record in records}
    values = {record["name"]: record["value"] for record in records if record["kind"] == "metric"}
    assert 1 < values["health/effective_rank"] <= 64
    assert -8 <= values["health/uniformity"] < 0 < values["health/alignment"] <= 4
    assert values["health/dead_dimensions"] == 0.0


def test_what_is_missing_in_the_results_is_told_with_its_reason_until_it_is_measured(tmp_path):
    folder = RunFolder(tmp_path)
    recipe = load(["recipe=quickstart", "tracking.uri=none"]).recipe
    reasons = {"probe/mlp": "one image", "knn/y": "gone", "figures/tsne.png": "few", "probe/svm/y": "gone"}
    folder.merge_results({"probe/linear/y": 0.5}, reasons)
    assert folder.results() == {"probe/linear/y": 0.5}
    assert folder.left_out() == reasons
    lines = report.summary(folder, recipe).splitlines()
    assert "left out  knn/y, probe/svm/y: gone" in lines
    assert "left out  probe/mlp: one image" in lines

    folder.merge_results({"probe/mlp/fc": 0.25, "probe/svm/y/std": 0.0}, {"knn/y": "gone again"})
    assert folder.results() == {"probe/linear/y": 0.5, "probe/mlp/fc": 0.25, "probe/svm/y/std": 0.0}
    assert folder.left_out() == {"knn/y": "gone again"}
    folder.merge_results({"knn/y": 1.0})
    assert json.loads((tmp_path / "results.json").read_text()) == folder.results()


def test_a_picture_that_cannot_be_drawn_costs_a_line(capsys, tmp_path):
    (tmp_path / "figures").write_text("a file where the folder should be")
    folder = RunFolder(tmp_path)
    report.draw_accuracies(folder)  # none to draw
    assert not capsys.readouterr().err
    folder.merge_results({"knn/y": 0.5})
    report.draw_accuracies(folder)
    line = capsys.readouterr().err
    assert line.startswith(f"warning: {tmp_path / 'figures' / 'accuracies.png'} was not drawn: ")
    assert line.count("\n") == 1


def test_the_summary_names_the_information_of_test_images_alone(tmp_path):
    folder, recipe = RunFolder(tmp_path), loading.load(["recipe=quickstart", "tracking.uri=none"]).recipe
    assert "information" not in report.summary(folder, recipe)
    journal = Journal(folder.journal)
    journal.metrics({"mi/local": 4.14, "mi/local/ceiling": 4.16, "mi/local/held_out": 0.5}, 128)
    journal.metrics({"mi/local/held_out": -13.04}, 256)
    journal.metrics({"mi/local": 4.15, "mi/local/ceiling": 4.16}, 384)
    journal.close()
    lines = report.summary(folder, recipe).splitlines()
    assert lines[0] == "information, test images: mi/local/held_out -13.04 nats"
    assert not any("4.14" in line or "4.15" in line for line in lines)
