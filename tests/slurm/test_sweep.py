"""slurm/sweep.sh: a run for each combination of values; jobs that end, fail and continue each for itself."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.slurm.small_runs import continued_once, is_training


def listing(file: Path | str, *words: str) -> subprocess.CompletedProcess:
    """What the script says where there is no Slurm."""
    command = ["env", "-u", "SLURM_JOB_ID", "bash", "slurm/sweep.sh", str(file), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_runs_are_listed_where_nothing_is_submitted(tmp_path):
    file = tmp_path / "rates.txt"
    file.write_text("# two keys\noptimizer.lr=1e-4,3e-4,1e-3\n\nobjective.bound=jsd,infonce\n")
    done = listing(file, "recipe=dim_local")
    assert (done.returncode, done.stderr) == (0, "")
    *runs, command = done.stdout.splitlines()
    rates, bounds = ("1e-4", "3e-4", "1e-3"), ("jsd", "infonce")
    expected = [f"optimizer.lr={rate} objective.bound={bound}" for bound in bounds for rate in rates]
    assert runs == [f"{number}  {words}" for number, words in enumerate(expected)]
    assert command == f"sbatch --array=0-5 slurm/sweep.sh {file} recipe=dim_local"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.lr=1e-4, 3e-4\n", "optimizer.lr=1e-4, 3e-4: expected KEY=VALUE,VALUE,... without spaces"),
        ("optimizer.lr=1e-4,,3e-4\n", "optimizer.lr=1e-4,,3e-4: expected KEY=VALUE,VALUE,... without spaces"),
        ("optimizer.lr\n", "optimizer.lr: expected KEY=VALUE,VALUE,... without spaces"),
        ("# nothing\n", "no line KEY=VALUE,VALUE,..."),
    ],
)
def test_a_file_that_is_no_sweep_is_one_line(tmp_path, text, message):
    file = tmp_path / "rates.txt"
    file.write_text(text)
    done = listing(file)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {file}: {message}\n")


def test_a_word_that_is_no_file_is_one_line():
    done = listing("recipe=dim_local")
    assert done.returncode == 2
    assert done.stderr.startswith("error: recipe=dim_local: expected a file of lines KEY=VALUE,VALUE,...")


def test_an_element_that_fails_is_named_and_the_other_goes_on(slurm, submit, training, tmp_path):
    """Slurm knows the last element by the array's number: what is meant for it must not reach the other."""
    outputs, file = tmp_path / "outputs", tmp_path / "rates.txt"
    file.write_text("optimizer.lr=-1,1e-3\n")
    job = submit("--array=0-1", str(file), "images=10240", *training, script="sweep.sh")
    array, job.id = job.id, f"{job.id}_1"
    run = outputs / "optimizer.lr=1e-3"
    job.until(lambda: is_training(run))
    slurm("scancel", "--signal=USR1", job.id)
    continued_once(run, job)
    other = slurm("scontrol", "show", "job", f"{array}_0")
    fields = dict(re.findall(r"\b(JobState|Restarts|ExitCode)=(\S+)", other))
    assert fields == {"JobState": "FAILED", "Restarts": "0", "ExitCode": "2:0"}
    assert "element 0 of the sweep has not ended well, status 2: optimizer.lr=-1" in job.text
    assert "not evaluated" in (outputs / "report.txt").read_text()
    assert [path.name for path in outputs.iterdir() if path.is_dir()] == [run.name]


def test_an_array_that_does_not_fit_is_one_line(submit, tmp_path):
    file = tmp_path / "rates.txt"
    file.write_text("optimizer.lr=1e-4,1e-3\n")
    job = submit("--array=2", str(file), script="sweep.sh")
    job.id += "_2"
    assert job.end() == "FAILED"
    assert job.text == (
        f"error: element 2: {file} has 2 combinations: sbatch --array=0-1 slurm/sweep.sh {file}\n"
    )
