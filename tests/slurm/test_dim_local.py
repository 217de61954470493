"""slurm/dim_local.sh against real daemons: runs, is signalled, is preempted, is given a wrong recipe."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ["data.size=16", "encoder.channels=[8, 16]", "encoder.fc=32", "objective.critic.units=32"]
SHORT = ["log.every=128", "save.every=25600", "evaluate.every=0", "evaluate.at_end=false"]


@pytest.fixture
def training(tmp_path):
    """Arguments of a small training on the embedded digits that leaves everything in the test's folder."""
    places = [f"outputs={tmp_path}/outputs", f"data.root={tmp_path}/digits", "tracking.uri=none"]
    return ["recipe=quickstart", *places, *TINY, *SHORT]


def journal(run, kind):
    path = run / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in records if record["kind"] == kind]


def is_training(run):
    return any(record["images"] >= 256 for record in journal(run, "metric"))


def continued_once(run, job):
    """The job was stopped, came back by itself, continued from the checkpoint it had saved, and finished."""
    assert job.end() == "COMPLETED", job.text
    assert job.told("Restarts") == "1", job.text
    assert "stopped at a checkpoint, requeued" in job.text
    # what srun says of a launcher that the signal has ended
    killed = ("task 0: User defined signal", "task 0: Terminated")
    assert not any(words in job.text for words in killed), job.text
    (resumed,) = journal(run, "resumed")
    assert resumed["images"] > 0
    assert (run / "done").exists()
    assert not (run / "stopped").exists()


def test_scripts_are_clean():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck missing: apt-get install shellcheck")
    scripts = [*(ROOT / "slurm").glob("*.sh"), ROOT / "tests/slurm/cluster.sh"]
    done = subprocess.run(["shellcheck", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


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
    """One process, which is sent TERM; a job that wants its node goes first."""
    run = tmp_path / "outputs" / "quickstart"
    job = submit("images=15360", *training)  # Slurm takes seconds to preempt
    job.until(lambda: is_training(run))
    urgent = ["--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    slurm("sbatch", *urgent)
    continued_once(run, job)


def test_a_mistake_ends_the_job(slurm, submit, tmp_path):
    """The recipe is dim_local where none is named; its errors come before anything is started."""
    slurm("sbatch", "--test-only", "slurm/dim_local.sh")
    job = submit("optimiser.lr=1e-3", f"outputs={tmp_path}/outputs")
    assert job.end() == "FAILED"
    assert job.told("ExitCode") == "2:0"
    assert "optimizer" in job.text
    assert "Traceback" not in job.text
    assert not (tmp_path / "outputs").exists()
