"""What befell jobs elsewhere, provoked: signals at bad moments, ranks killed or hung, daemons lost."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.helpers.slurm.small_runs import is_training, journal, stopped_without_failure
from trainer.report.status import read_status

TWO_NODES = ["--cpus-per-task=2", "--gpus-per-node=1"]
SAVING = "save.every=1024"
WAITING = """#!/bin/bash
# Starts late in the first start of a job: when {until}, or a minute later.
[[ -n ${{SLURM_RESTART_COUNT:-}} ]] || touch {here}
for _ in {{1..600}}; do
  [[ -n ${{SLURM_RESTART_COUNT:-}} || {until} ]] && break
  sleep 0.1
done
exec {real} "$@"
"""


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "outputs" / "quickstart"


def saved(run: Path) -> bool:
    return is_training(run) and bool(list((run / "checkpoints").glob("images-*")))


def rank_processes(run: Path) -> list[psutil.Process]:
    """The ranks that train a run, as seen from outside of the nodes."""
    ranks = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if f"outputs={run.parent}" in words and "trainer/main.py" in words[:3]:
            ranks.append(process)
    return ranks


# ---- signals -------------------------------------------------------------------------------------


@pytest.fixture
def late(slurm, tmp_path, monkeypatch):
    """Makes a program of the jobs start late: `late("accelerate", TEST)` waits until bash's TEST holds.

    Returns the file that is there once the program is waiting.
    """
    folder = tmp_path / "late"
    folder.mkdir()
    path = slurm.env["PATH"]
    monkeypatch.setitem(slurm.env, "PATH", f"{folder}:{path}")

    def late(program: str, until: str) -> Path:
        real = next(file for place in path.split(":") if (file := Path(place, program)).exists())
        here = folder / f"{program}.waits"
        (folder / program).write_text(WAITING.format(here=here, real=real, until=until))
        (folder / program).chmod(0o755)
        return here

    return late


NOTED = "-s ${STOP_REQUEST_FILE:-}"  # slurm/node.sh has noted the signal


def test_a_signal_for_the_batch_shell_before_there_is_a_step(slurm, submit, late, training, run, tmp_path):
    """As Slurm sends it near the limit, while the job is still being checked; over two nodes.

    The interface is in the line of the start, and a planned stop has no tracebacks.
    """
    checking, go = late("python", f"-e {tmp_path}/go"), tmp_path / "go"
    late("accelerate", NOTED)
    job = submit(*TWO_NODES, "images=2560", *training, script="hybrid_imagenet.sh")
    job.until(checking.exists)
    slurm("scancel", "--signal=USR1", "--batch", job.id)
    go.touch()
    assert job.end() == "COMPLETED", job.text
    assert job.field("Restarts") == "1", job.text
    assert "stopped at a checkpoint, requeued" in job.text
    assert (run / "done").exists()
    assert "recipe quickstart: 2 ranks x 1 thread, ddp, cpu, float32, over eth0\n" in job.text
    stopped_without_failure(job)


def test_a_signal_for_the_steps_before_the_ranks_have_handlers(slurm, submit, late, training, run):
    starting = late("accelerate", NOTED)
    job = submit("images=2560", *training)
    job.until(starting.exists)
    slurm("scancel", "--signal=USR1", job.id)
    assert job.end() == "COMPLETED", job.text
    assert job.field("Restarts") == "1", job.text
    assert (run / "done").exists()


def test_a_job_that_is_cancelled_does_not_come_back(slurm, submit, training, run):
    """scancel's TERM stops the training as a preemption does; the job asks for no other start."""
    job = submit("images=20480", *training)
    job.until(lambda: is_training(run))
    ranks = rank_processes(run)
    slurm("scancel", job.id)
    assert job.end() == "CANCELLED", job.text
    assert not psutil.wait_procs(ranks, timeout=600)[1]
    assert (job.field("JobState"), job.field("Restarts")) == ("CANCELLED", "0"), job.text
    assert "requeued" not in job.text


# ---- ranks ---------------------------------------------------------------------------------------


def test_a_killed_rank_is_tried_again_after_a_new_checkpoint(submit, training, run):
    job = submit("images=7680", *training, SAVING)
    job.until(lambda: saved(run))
    os.kill(rank_processes(run)[0].pid, signal.SIGKILL)
    assert job.end() == "COMPLETED", job.text
    assert job.field("Restarts") == "1"
    assert "a rank was killed or hung, after a new checkpoint, requeued" in job.text
    assert len(journal(run, "resumed")) == 1
    assert (run / "retries").read_text() == f"{job.id} 1\n"
    assert (read_status(run).state, read_status(run).job) == ("done", job.id)


def test_a_rank_that_hangs_is_named_and_tried_again(submit, training, run):
    """One of two nodes stops in the middle of a step, as in a driver."""
    words = [*training, SAVING, "step_timeout=20", "data.retry_seconds=1"]
    job = submit(*TWO_NODES, "images=7680", *words, script="hybrid_imagenet.sh")
    job.until(lambda: saved(run))
    (hanging,) = [process for process in rank_processes(run) if process.environ()["RANK"] == "1"]
    os.kill(hanging.pid, signal.SIGSTOP)
    assert job.end() == "COMPLETED", job.text
    assert job.field("Restarts") == "1", job.text
    assert "rank 1 does not answer" in job.text
    assert "a rank was killed or hung, after a new checkpoint, requeued" in job.text
    assert len(journal(run, "resumed")) == 1


def test_a_rank_that_is_killed_without_a_new_checkpoint_ends_the_job(submit, training, run):
    job = submit("images=20480", *training)
    job.until(lambda: is_training(run))
    os.kill(rank_processes(run)[0].pid, signal.SIGKILL)
    assert job.end() == "FAILED", job.text
    assert job.field("Restarts") == "0"
    assert "failed with status" in job.text


# ---- daemons -------------------------------------------------------------------------------------


def test_a_start_takes_over_from_one_that_slurm_has_lost_sight_of(slurm, submit, training, run):
    """Only the slurmd of the batch node dies: what it had started trains on, beside the job's next start."""
    job = submit("images=76800", *training, SAVING)  # more than one start takes of a fast machine
    job.until(lambda: saved(run))
    node = job.field("BatchHost")
    slurm(node, "pkill", "-KILL", "-x", "slurmd", cluster=("on",))
    try:
        slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
        assert job.end() == "COMPLETED", job.text
        assert job.field("BatchHost") != node
    finally:
        slurm(node, cluster=("revive",))
    assert job.field("Restarts") == "1", job.text
    assert "an earlier start of this job lives on, on another node, and is asked to stop" in job.text
    assert len(journal(run, "resumed")) == 1
    assert (run / "done").exists()


def test_a_replaced_start_requeues_nothing(slurm):
    """As the orphaned script of a node whose slurmd died: its restart count is that of an earlier start."""
    options = ["--parsable", "--requeue", "--output=/dev/null"]
    job = slurm("sbatch", *options, "--wrap=sleep 300")
    try:
        script = (
            f"export SLURM_JOB_ID={job} SLURM_CPUS_ON_NODE=1 SLURM_JOB_NODELIST=n1 SLURM_RESTART_COUNT=7;"
            "set -eu; source slurm/common.sh; requeue || echo status $?"
        )
        said = slurm("bash", "-c", script)
        assert "not requeued: restart 0 of this job has replaced this one, restart 7" in said
        assert said.endswith("status 1")
        assert "Restarts=0" in slurm("scontrol", "show", "job", job)
    finally:
        slurm("scancel", job)
