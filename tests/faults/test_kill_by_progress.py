"""The quickstart, a third as long and killed again and again, ends with the bits of one left alone."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from tests.helpers import ROOT
from trainer.checkpoints.load import load, newest
from trainer.tracking.journal import read

pytestmark = pytest.mark.slow

IMAGES, SAVE_EVERY = 12_800, 1_280
LENGTH = [f"images={IMAGES}", f"save.every={SAVE_EVERY}", "log.every=640", "evaluate.every=3200"]
CLOCKS = {"images_per_second", "data_wait"}  # the only figures that may differ


def start(folder: Path) -> subprocess.Popen:
    """The README's command, shorter, with everything it writes under `folder`."""
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "trainer/main.py"]
    return subprocess.Popen(
        [
            *(*launch, "recipe=quickstart", *LENGTH),
            *(f"outputs={folder / 'outputs'}", f"data.root={folder / 'digits'}"),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(folder: Path) -> str:
    process = start(folder)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    return out


def progress(run: Path) -> int:
    """Images seen, by the newest metric of the journal; -1 before there is one."""
    journal = run / "journal.jsonl"
    images = (
        [record["images"] for record, _ in read(journal) if record["kind"] == "metric"]
        if journal.exists()
        else []
    )
    return max(images, default=-1)


def kill_when(folder: Path, reached) -> None:
    """Starts the command and kills everything it started, without a word, once `reached()`."""
    process = start(folder)
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def journal(run: Path, *kinds: str) -> list[dict]:
    return [record for record, _ in read(run / "journal.jsonl") if record["kind"] in kinds]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    out = finish(folder)
    print(f"quickstart: {time.monotonic() - began:.0f} s\n{out}")
    return folder / "outputs" / "quickstart"


@pytest.fixture(scope="module")
def killed(tmp_path_factory, undisturbed):
    folder = tmp_path_factory.mktemp("killed")
    run = folder / "outputs" / "quickstart"
    kill_when(folder, (folder / "digits").exists)  # set-up: the data set is being made
    kill_when(folder, (run / "recipe.yaml").exists)  # set-up: the run's folder is there, no step was made
    for share in (0.15, 0.30, 0.50, 0.80):
        kill_when(folder, lambda least=share * IMAGES: progress(run) >= least)
    finish(folder)
    return run


def test_final_weights_are_bit_identical(undisturbed, killed):
    states = [load(newest(run / "checkpoints", pytest.fail)) for run in (undisturbed, killed)]
    assert states[0].keys() == states[1].keys()
    assert len(states[0]) > 50
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_each_start_continues_and_redoes_less_than_two_save_intervals(killed):
    """The newest checkpoint may still be written when the process is killed; the one before never."""
    reached = 0
    resumed = []
    for record in journal(killed, "metric", "resumed"):
        if record["kind"] == "resumed":
            assert record["images"] > 0
            assert reached - record["images"] < 2 * SAVE_EVERY
            resumed.append(record["images"])
        reached = max(reached, record["images"])
    assert len(resumed) >= 4
    assert resumed == sorted(resumed)
    assert IMAGES / SAVE_EVERY >= 10


def test_the_journal_has_every_figure_once(undisturbed, killed):
    def figures(run):
        return {(r["name"], r["images"]): r["value"] for r in journal(run, "metric")}

    counts = Counter(
        (r["name"], r["images"]) for r in journal(killed, "metric", "parameter", "tag", "artifact")
    )
    assert max(counts.values()) == 1
    expected, actual = figures(undisturbed), figures(killed)
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        assert key[0] in CLOCKS or actual[key] == value, key


@pytest.mark.parametrize("which", ["undisturbed", "killed"])
def test_mlflow_has_what_the_journal_has(which, request):
    run = request.getfixturevalue(which)
    client = MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'hybrid-infomax'")
    (mlflow_run,) = client.search_runs([experiment.experiment_id])
    assert mlflow_run.info.status == "FINISHED"
    histories: dict[str, list[tuple[int, float]]] = {}
    for record in journal(run, "metric"):
        histories.setdefault(record["name"], []).append((record["images"], record["value"]))
    assert len(histories) > 20
    for name, points in histories.items():
        history = sorted((m.step, m.value) for m in client.get_metric_history(mlflow_run.info.run_id, name))
        assert history == sorted(points), name
