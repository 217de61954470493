"""The evaluate task, and what is refused before anything is measured."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from data_pipelines.common.errors import UserError
from data_pipelines.dataset_loading import load_dataset
from tests.helpers.command_lines import MAIN, mistake, process, script, tiny
from trainer.evaluation.measure import compared_pixels
from trainer.recipe.loading import load
from trainer.recipe.schema import Tracking
from trainer.runs.folder import RunFolder
from trainer.tasks.checks import Start, check_disk, check_evaluation
from trainer.tasks.evaluate import deliver, tracked
from trainer.tasks.resources import SMALL_FILES
from trainer.tracking.journal import Journal, read

CHEAP = ["evaluate.linear={iterations: 5}", "evaluate.mlp=null", "evaluate.few_shot=null"]
CHEAP += ["evaluate.svm={iterations: 5}", "evaluate.linear_sgd=null", "tracking.uri=none"]


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    """A run of 256 images with checkpoints at 128 and 256, trained and not evaluated."""
    outputs = tmp_path_factory.mktemp("outputs")
    done = process(sys.executable, MAIN, *tiny(outputs, digits.root))
    assert done.status == 0, done.err
    return outputs / "quickstart"


def test_one_of_several_checkpoints_is_chosen_by_its_images(capsys, folder):
    arguments = ["recipe=evaluate", f"from={folder}", "evaluate.controls=false", *CHEAP]
    done = script(capsys, *arguments, "images=128")
    assert done.status == 0, done.err
    assert "\nencoder " not in done.out  # that of 256 images is not this one, and no other was exported
    earlier = folder / "evaluations" / "images-000000000128"
    assert {"knn/y", "probe/svm/y", "probe/svm/y/std"} <= set(
        json.loads((earlier / "results.json").read_text())
    )
    for picture in ("neighbours.png", "accuracies.png"):
        assert (earlier / "figures" / picture).exists()
    assert not (folder / "results.json").exists()  # that is of the newest

    assert script(capsys, *arguments).status == 0
    newest = json.loads((folder / "results.json").read_text())
    seen = {
        (record["name"], record["images"]): record["value"]
        for record, _ in read(folder / "journal.jsonl")
        if record["kind"] == "metric"
    }
    assert seen["results/probe/linear/fc", 256] == newest["probe/linear/fc"]
    assert ("results/probe/linear/fc", 128) in seen
    assert not (folder / "features").exists()

    line = mistake(script(capsys, *arguments, "images=100"))
    assert line == "images=100: the run has no such checkpoint; it keeps 128, 256"


def test_a_run_that_is_being_trained_is_left_alone(capsys, folder):
    """And not looked into: training removes the checkpoint that was the newest."""
    journal = Journal(folder / "journal.jsonl")
    for images in ("null", "100"):
        line = mistake(script(capsys, "recipe=evaluate", f"from={folder}", *CHEAP, f"images={images}"))
        assert "another process is writing this run" in line
    journal.close()


def test_figures_with_other_values_than_before_are_a_line(tmp_path, capsys):
    journal = Journal(tmp_path / "journal.jsonl")
    first = {"knn/y": 0.5, "probe/svm/y": 0.25}
    for results, changed in ((first, 0), (first, 0), (first | {"knn/y": 0.75, "new": 1.0}, 1)):
        deliver(RunFolder(tmp_path), journal, results, 128, Tracking(uri="none"))
        out = capsys.readouterr().out
        assert out.count("\n") == changed
    assert out.startswith(
        "1 of 3 figures were measured at 128 images before, with other values: results.json"
    )
    journal.close()
    values = {
        record["name"]: record["value"] for record, _ in read(journal.path) if record["kind"] == "metric"
    }
    assert values == {"results/knn/y": 0.5, "results/probe/svm/y": 0.25, "results/new": 1.0}


def test_figures_go_where_the_run_is_tracked_unless_the_evaluation_says_otherwise():
    recipe = load(
        ["recipe=quickstart", "tracking.uri=http://server:5000", "tracking.experiment=first"]
    ).recipe

    def tracking_with(*words: str) -> Tracking:
        return tracked(load(["recipe=evaluate", "from=outputs/quickstart", *words]), recipe)

    assert tracking_with() == Tracking(uri="http://server:5000", experiment="first")
    assert tracking_with("tracking.uri=null") == Tracking(uri=None, experiment="first")
    assert tracking_with("tracking.experiment=second") == Tracking(
        uri="http://server:5000", experiment="second"
    )


def test_a_stopped_evaluation_leaves_neither_cache_nor_lock(folder):
    long = ["evaluate.svm={epochs: 100000, runs: 2}", "evaluate.linear=null", *CHEAP[1:3], *CHEAP[4:]]
    command = [sys.executable, MAIN, "recipe=evaluate", f"from={folder}", *long]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    assert not (folder / "features").exists()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            end = time.monotonic() + 120
            while not list((folder / "features").glob("*/*")):
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.01)
            for _ in range(2):  # a launcher hands on what all have got already
                process.send_signal(signal.SIGTERM)
            errors = process.communicate(timeout=60)[1].decode()
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    assert not (folder / "features").exists()
    Journal(folder / "journal.jsonl", wait=0).close()


def test_controls_are_measured_with_the_same_heads(capsys, folder):
    done = script(capsys, "recipe=evaluate", f"from={folder}", *CHEAP, "evaluate.online_images=2")
    assert done.status == 0, done.err
    results = json.loads((folder / "results.json").read_text())
    for control in ("untrained", "untrained_recalibrated"):
        assert {f"control/{control}/probe/svm/{name}" for name in ("conv", "fc", "y")} <= set(results)
    assert {f"control/pixels/{key}" for key in ("knn", "probe/linear", "probe/svm", "probe/svm/std")} <= set(
        results
    )


def test_one_image_is_too_few_for_batch_norm(capsys, folder):
    line = mistake(script(capsys, "recipe=evaluate", f"from={folder}", *CHEAP, "evaluate.online_images=1"))
    assert line.startswith(
        "evaluate.online_images=1: batch-norm is re-estimated on them and needs 2 at least"
    )


# ---- data without labels -----------------------------------------------------------------------------


def recipe(root, *more):
    return load(["recipe=quickstart", f"data.root={root}", *more]).recipe


@pytest.fixture
def unlabelled(digits, tmp_path):
    """A copy of the digits whose training images have no label."""
    root = shutil.copytree(digits.root, tmp_path / "digits")
    for path in (root / "train").glob("*.npy"):
        index = np.load(path, allow_pickle=False)
        index["label"] = -1
        np.save(path, index, allow_pickle=False)
    return root


def test_data_without_labels_asked_for_probes_is_refused(digits, unlabelled):
    check_evaluation(recipe(digits.root), digits)
    dataset = load_dataset(unlabelled)
    with pytest.raises(UserError, match=r"no image of 'train' \(data.labelled\) has a label.*at_end=false"):
        check_evaluation(recipe(unlabelled, "data.labelled=train"), dataset)  # a key that asks for them
    (line,) = check_evaluation(recipe(unlabelled), dataset)
    assert line.endswith("knn/y: left out, no image of 'train' (data.train) has a label")
    check_evaluation(recipe(unlabelled, "data.labelled=test"), dataset)
    # The online monitor needs no label.
    check_evaluation(recipe(unlabelled, "evaluate.at_end=false"), dataset)
    with pytest.raises(UserError, match=r"has no classes.*evaluate.at_end=false"):
        check_evaluation(recipe(unlabelled), replace(dataset, classes=()))


def test_a_disk_without_room_for_what_is_probed_is_an_error_before_the_training(
    digits, tmp_path, monkeypatch
):
    usage, folder = shutil.disk_usage(tmp_path), tmp_path / "outputs" / "run"
    images = digits.splits["train"].images + digits.splits["test"].images

    def start(*more):
        return Start(recipe(digits.root, "data.size=32", *more), None, digits, folder)

    def left(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=free))

    of_run = start("evaluate.controls=false")
    needed = 2 * of_run.sizes.checkpoint + of_run.sizes.exported + SMALL_FILES
    needed += 4 * images * sum(of_run.objective.encoder.widths.values())
    left(needed - 1)
    with pytest.raises(UserError, match=f"images to probe.*{folder} has .*evaluate.at_end=false"):
        check_disk(of_run)
    assert not list(check_disk(start("evaluate.at_end=false")))
    left(needed)
    assert not list(check_disk(of_run))
    with pytest.raises(UserError, match="images to probe"):
        check_disk(start("evaluate.controls=true", "encoder.channels=[1, 1, 1]"))  # 3,072 pixels an image


def test_raw_pixels_of_large_images_are_not_probed(digits):
    assert compared_pixels(recipe(digits.root, "data.size=64")) == 12288
    assert compared_pixels(recipe(digits.root, "data.size=66")) == 0


def test_the_online_monitor_does_without_labels(capsys, unlabelled, tmp_path):
    arguments = tiny(tmp_path / "outputs", unlabelled, "evaluate.every=256")
    done = script(capsys, *arguments)
    assert done.status == 0, done.err
    names = {record["name"] for record, _ in read(tmp_path / "outputs" / "quickstart" / "journal.jsonl")}
    assert "mi/local/held_out" in names
    assert "knn/y/online" not in names
