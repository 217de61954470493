"""slurm/dim_local.sh against real daemons: runs, is signalled, is preempted, is given a wrong recipe."""

import json

from tests.helpers.slurm.small_runs import continued_once, is_training, journal


def test_signal_before_the_time_limit(slurm, submit, training, tmp_path):
    """Two processes, for two GPUs (pretended: the processes see none and train on CPU).

    The signal is what slurmctld sends before the limit, without the wait for it.
    """
    run = tmp_path / "outputs" / "quickstart"
    job = submit("--gpus-per-node=2", "images=10240", *training)
    job.until(lambda: is_training(run))
    slurm("scancel", "--signal=USR1", job.id)
    continued_once(run, job)
    assert json.loads((run / "world.json").read_text())["processes"] == 2


def test_preemption(slurm, submit, training, tmp_path):
    """One process, which is sent TERM; a job that wants all nodes goes first."""
    run = tmp_path / "outputs" / "quickstart"
    job = submit("images=15360", *training)  # Slurm takes seconds to preempt
    job.until(lambda: is_training(run))
    urgent = ["--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    slurm("sbatch", *urgent)
    continued_once(run, job)
    assert "task 0: Terminated" not in job.text, job.text  # the launcher left the signal to the training


def test_a_stop_file_made_while_the_job_waits_to_start_again(slurm, submit, training, tmp_path):
    run = tmp_path / "outputs" / "quickstart"
    job = submit("images=15360", *training)
    job.until(lambda: is_training(run))
    slurm("scancel", "--signal=USR1", job.id)
    job.until(lambda: job.field("JobState") == "PENDING")
    (run / "stop").touch()
    assert job.end() == "FAILED", job.text  # what waits for it with afterok must not start
    assert "not started again: the stop file" in job.text
    assert not journal(run, "resumed")
    assert not (run / "done").exists()


def test_a_mistake_ends_the_job(submit, tmp_path):
    """The recipe is dim_local where none is named; its errors come before anything is started."""
    job = submit("optimiser.lr=1e-3", f"outputs={tmp_path}/outputs")
    assert job.end() == "FAILED"
    assert job.field("ExitCode") == "2:0"
    assert "optimizer" in job.text
    assert "Traceback" not in job.text
    assert not (tmp_path / "outputs").exists()
