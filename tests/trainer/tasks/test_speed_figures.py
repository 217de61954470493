"""benchmarks/knn_curve.py and benchmarks/throughput.py: what their tables are made of."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.common.errors import UserError
from trainer.tracking.journal import Journal

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _scripts_can_be_imported(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])


def test_minutes_are_those_of_training_up_to_each_accuracy(tmp_path):
    from knn_curve import curve

    journal = Journal(tmp_path / "journal.jsonl")
    for images, speed in ((600, 10.0), (1800, 20.0), (3000, 5.0)):  # 60 s, 60 s, 240 s
        journal.metrics({"images_per_second": speed}, images)
    for images, accuracy in ((600, 0.2), (2400, 0.3), (3000, 0.4)):
        journal.metrics({"knn/y/online": accuracy}, images)
    journal.close()
    assert curve(tmp_path / "journal.jsonl") == [(600, 1.0, 0.2), (2400, 4.0, 0.3), (3000, 6.0, 0.4)]


def test_each_recipe_takes_the_words_behind_it():
    from throughput import split

    words = ["recipe=a", "batch=1", "recipe=b", "recipe=a"]
    assert split(words) == [["recipe=a", "batch=1"], ["recipe=b"], ["recipe=a"]]
    with pytest.raises(UserError, match="'batch=1' comes before any recipe"):
        split(["batch=1", "recipe=a"])


def test_time_ends_after_a_step_and_warm_ones_do_not_count():
    from throughput import timed

    calls = []
    steps, _ = timed(lambda: calls.append(0), warm=2, seconds=0)
    assert (steps, len(calls)) == (1, 3)


@pytest.mark.slow
def test_speeds_of_a_recipe_are_measured(digits, tmp_path):
    words = [
        "recipe=quickstart",
        f"data.root={digits.root}",
        "batch=64",
        "recipe=quickstart",
        f"data.root={digits.root}",
    ]
    command = [sys.executable, "benchmarks/throughput.py", *words, "--seconds", "0.2"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = [line.split(" | ") for line in output.splitlines() if line.startswith("| quickstart")]
    assert f"All with data.root={digits.root}" in output
    assert [row[0] for row in rows] == ["| quickstart batch=64", "| quickstart"]
    for row in rows:
        assert all(float(cell.replace(",", "")) > 0 for cell in row[4:7])
        assert re.fullmatch(r"\d+\.\d% \|", row[7])
