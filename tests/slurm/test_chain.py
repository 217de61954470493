"""slurm/chain.sh: what follows a training waits for it, and is cancelled where it fails."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT
from tests.helpers.slurm.daemons import Job


class Submitted(Job):
    """A job that another command has submitted."""

    def __init__(self, slurm, number: str, log: Path):
        self.slurm, self.id, self.log = slurm, number, log


@pytest.fixture
def chain(slurm, tmp_path, monkeypatch):
    """Submits a chain of small jobs; the jobs by what they are."""
    jobs: dict[str, Submitted] = {}

    def chain(*words: str, shards: str = "") -> dict[str, Submitted]:
        for kind in ("TRAIN", "EVALUATE"):
            monkeypatch.setitem(slurm.env, f"{kind}_OPTIONS", f"--time=30 --output={tmp_path}/{kind}.log")
        small = "linear_sgd=null svm=null mlp=null few_shot=null controls=false"
        probes = " ".join(f"evaluate.{word}" for word in small.split())
        monkeypatch.setitem(slurm.env, "EVALUATE", f"tracking.uri=none {probes}")
        monkeypatch.setitem(slurm.env, "SHARDS", shards)
        alone = f"--array=1 --export=ALL,PARTS=1 --time=30 --output={tmp_path}/SHARDS.log"
        monkeypatch.setitem(slurm.env, "SHARDS_OPTIONS", alone)
        lines = slurm("bash", "slurm/chain.sh", "slurm/dim_local.sh", *words).splitlines()
        names = ["TRAIN", "EVALUATE", "report"]
        logs = [tmp_path / f"{name}.log" for name in (["SHARDS"] if shards else []) + names]
        for line, log in zip(lines, logs, strict=True):
            number, what, *_ = line.split()
            jobs[what] = Submitted(slurm, number, log)
        return jobs

    yield chain
    for job in jobs.values():
        if job.field("JobState") in ("PENDING", "RUNNING"):
            slurm("scancel", "--full", job.id)
    for log in ROOT.glob("slurm-report-*.out"):
        if any(log.name == f"slurm-report-{job.id}.out" for job in jobs.values()):
            log.unlink()


def test_an_evaluation_and_a_report_follow_the_training(chain, training, tmp_path):
    jobs = chain("images=2560", *training)
    assert [job.end() for job in jobs.values()] == ["COMPLETED"] * 3, jobs["evaluation"].text
    assert "complete: evaluate" in jobs["evaluation"].text
    assert "linear y, %" in (tmp_path / "outputs" / "report.txt").read_text()


def test_a_training_waits_for_its_data_set(chain, training, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)
    for split, count in (("train", 80), ("val", 20)):
        (tmp_path / "photos" / split).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(images[number]).save(tmp_path / "photos" / split / f"{number}.png")
    words = [word for word in training if not word.startswith("data.root=")]
    words += [f"data.root={tmp_path}/set", "data.source=folder", "data.test=val", "images=128"]
    jobs = chain(*words, shards=f"from={tmp_path}/photos to={tmp_path}/set")
    jobs.pop("evaluation"), jobs.pop("report")  # of images without classes
    assert list(jobs) == ["shards", "training"]
    assert jobs["training"].end() == "COMPLETED", jobs["training"].text
    assert "train 80 in 1 shards, val 20 in 1 shards" in jobs["shards"].text


def test_what_waits_for_a_training_that_fails_never_starts(chain, training, tmp_path):
    jobs = chain(*training, "data.source=folder", f"data.root={tmp_path}/none")
    assert jobs["training"].end() == "FAILED"
    assert jobs["evaluation"].end() == "CANCELLED"
    assert not jobs["evaluation"].text


def test_a_word_that_is_no_job_is_one_line():
    done = subprocess.run(["bash", "slurm/chain.sh", "run=a"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: run=a: expected a job such as slurm/dim_local.sh as the first word\n"
