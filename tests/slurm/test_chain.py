"""slurm/chain.sh: what follows a training waits for it, and is cancelled where it fails."""

import subprocess
from pathlib import Path

import pytest

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

    def chain(*words: str) -> dict[str, Submitted]:
        for kind in ("TRAIN", "EVALUATE"):
            monkeypatch.setitem(slurm.env, f"{kind}_OPTIONS", f"--time=30 --output={tmp_path}/{kind}.log")
        small = "linear_sgd=null svm=null mlp=null few_shot=null controls=false"
        probes = " ".join(f"evaluate.{word}" for word in small.split())
        monkeypatch.setitem(slurm.env, "EVALUATE", f"tracking.uri=none {probes}")
        lines = slurm("bash", "slurm/chain.sh", "slurm/dim_local.sh", *words).splitlines()
        logs = [tmp_path / "TRAIN.log", tmp_path / "EVALUATE.log", tmp_path / "report.log"]
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


def test_what_waits_for_a_training_that_fails_never_starts(chain, training, tmp_path):
    jobs = chain(*training, "data.source=folder", f"data.root={tmp_path}/none")
    assert jobs["training"].end() == "FAILED"
    assert jobs["evaluation"].end() == "CANCELLED"
    assert not jobs["evaluation"].text


def test_a_word_that_is_no_job_is_one_line():
    done = subprocess.run(["bash", "slurm/chain.sh", "run=a"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: run=a: expected a job such as slurm/dim_local.sh as the first word\n"
