"""What befell jobs on other clusters, provoked on one: each works, or is one line before anything is started.

The cluster's nodes have Debian's /etc/hosts, so every job over nodes meets `127.0.1.1 NAME`.
"""

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.helpers import ROOT
from tests.helpers.slurm.small_runs import is_training, journal

SMALL = ["--cpus-per-task=2", "--gpus-per-node=1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--time=6"], "--time=00:06:00: the signal to stop comes up to 360 s before the limit"),
        (["--nodes=2"], "--nodes=2: this script is for one node"),
        (["--cpus-per-task=1", "--ntasks-per-node=2"], "2 tasks on 1 nodes: leave --ntasks-per-node at 1"),
        (["--array=0-1"], "an array would train one run 2 times"),
        (["--export=PATH=/usr/bin:/bin"], "no python or no accelerate in PATH on n"),
    ],
    ids=["time", "nodes", "tasks", "array", "path"],
)
def test_a_job_that_cannot_work_is_one_line(submit, words, message, tmp_path):
    job = submit(*words, f"outputs={tmp_path}/outputs")
    assert job.end() == "FAILED"
    assert job.field("ExitCode") == "2:0"
    assert all(line.startswith(f"error: {message}") for line in job.text.splitlines()), job.text
    assert not (tmp_path / "outputs").exists()


def test_memory_of_an_outer_salloc_and_another_folder(slurm, submit, training, tmp_path, monkeypatch):
    """srun takes only one of the variables; a user's accelerate file must not choose the engine."""
    default = tmp_path / "hf" / "accelerate" / "default_config.yaml"
    default.parent.mkdir(parents=True)
    default.write_text("distributed_type: FSDP\nfsdp_config: {}\nnum_processes: 2\nmixed_precision: bf16\n")
    monkeypatch.setitem(slurm.env, "SLURM_MEM_PER_NODE", "1000")
    monkeypatch.setitem(slurm.env, "HF_HOME", str(tmp_path / "hf"))
    job = submit("--cpus-per-task=2", f"--chdir={ROOT}", "images=2560", *training)
    assert job.end() == "COMPLETED", job.text
    assert "1 rank x" in job.text
    assert "single process" in job.text


def test_a_signal_before_training_has_handlers(slurm, submit, training, tmp_path):
    """Sent while python starts; the interface is in the first line, and a planned stop has no tracebacks."""
    job = submit(*SMALL, "images=2560", *training, script="hybrid_imagenet.sh")
    job.until(lambda: job.field("JobState") == "RUNNING")
    slurm("scancel", "--signal=USR1", "--batch", job.id)
    assert job.end() == "COMPLETED", job.text  # a stop in the making of data saves nothing
    assert job.field("Restarts") == "1", job.text
    assert "stopped at a checkpoint, requeued" in job.text
    assert (tmp_path / "outputs" / "quickstart" / "done").exists()
    assert "over eth0" in job.text.splitlines()[0]
    assert "Traceback" not in job.text
    assert "DerivedExitCode=1" not in slurm("scontrol", "show", "job", job.id)


def ranks(run: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if f"outputs={run.parent}" in words and "trainer/main.py" in words[:3]:
            found.append(process)
    return found


def test_a_killed_rank_is_tried_again_after_a_new_checkpoint(submit, training, tmp_path):
    run = tmp_path / "outputs" / "quickstart"
    job = submit("images=20480", *training, "save.every=1024")
    job.until(lambda: is_training(run) and list((run / "checkpoints").glob("images-*")))
    os.kill(ranks(run)[0].pid, signal.SIGKILL)
    assert job.end() == "COMPLETED", job.text
    assert job.field("Restarts") == "1"
    assert "a rank was killed or hung, after a new checkpoint, requeued" in job.text
    assert len(journal(run, "resumed")) == 1
    assert (run / "retries").read_text() == f"{job.id} 1\n"


def test_a_replaced_start_requeues_nothing(slurm, tmp_path):
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


def test_an_evaluation_leaves_the_files_of_the_training_alone(submit, training, tmp_path):
    """A run that was stopped is evaluated: complete by the launcher's status, and `stopped` stays."""
    run = tmp_path / "outputs" / "quickstart"
    job = submit("images=2560", *training)
    assert job.end() == "COMPLETED", job.text
    (run / "done").rename(run / "stopped")
    job.log.unlink()
    job = submit("recipe=evaluate", f"from={run}", "tracking.uri=none")
    assert job.end() == "COMPLETED", job.text
    assert "complete: evaluate" in job.text
    assert (run / "stopped").exists()
