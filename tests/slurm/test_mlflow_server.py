"""slurm/mlflow_server.sh: jobs track into it, it comes back with what it has, nobody starts a second one."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.slurm.daemons import Job

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
# Root's own PostgreSQL: it wants to be somebody else, whose the folders are then.
AS_NOBODY = """#!/bin/bash
for word; do
  case $word in
    --pgdata=*) install -d -o nobody -g nogroup "${{word#--pgdata=}}" ;;
    */tmp.*) chown nobody "$word" ;;
  esac
done
cd /
exec setpriv --reuid=nobody --regid=nogroup --clear-groups {program} "$@"
"""


@pytest.fixture
def folder(tmp_path):
    """The server's folder, which everybody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="mlflow-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def serves(job: Job, times: int = 1):
    job.until(lambda: job.text.count(": serves at http://") >= times)


def lines_of_a_job(folder: Path) -> str:
    """What site.example.sh shows for jobs that track into such a server, without its comment signs."""
    text = (ROOT / "slurm" / "site.example.sh").read_text().partition("# mlflow=")[2]
    lines = [line.removeprefix("# ") for line in f"# mlflow={text}".splitlines()]
    assert len(lines) == 3
    return "\n".join(lines).replace("outputs/mlflow_server", str(folder)) + "\n"


def test_jobs_track_into_it(slurm, submit, training, folder, tmp_path):
    """The address and the password are read from its folder, by the lines of site.example.sh."""
    server = submit("--nodelist=n1", str(folder), script="mlflow_server.sh")
    serves(server)
    address = (folder / "address").read_text().strip()
    assert address == "http://n1:5000"
    assert f"serves at {address}, from {folder}/mlflow.db; user admin" in server.text
    for name in ("password", "key", "mlflow.db", "users.db"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600, name
    assert (folder / "password").read_text().strip() not in server.text

    second = submit("--nodelist=n2", str(folder), script="mlflow_server.sh")
    assert second.end() == "FAILED"
    assert second.field("ExitCode") == "2:0"
    refusal = f"error: {folder}: job {server.id} serves it already, at the address in it; scancel"
    assert refusal in second.text  # a log that both write

    site = tmp_path / "site.sh"
    site.write_text(lines_of_a_job(folder))
    words = [word for word in training if not word.startswith("tracking.uri=")]
    job = submit("--nodelist=n2", f"--export=ALL,SITE={site}", "images=2560", *words)
    assert job.end() == "COMPLETED", job.text
    run = tmp_path / "outputs" / "quickstart"
    (entry,) = json.loads((run / "delivered.json").read_text()).values()
    assert entry["offset"] == (run / "journal.jsonl").stat().st_size, job.text
    slurm("scancel", server.id)
    assert server.end() == "CANCELLED"


@pytest.mark.skipif(not PROGRAMS, reason="PostgreSQL missing: apt-get install postgresql")
def test_it_is_requeued_before_its_time_limit_and_keeps_its_runs(
    slurm, submit, folder, tmp_path, monkeypatch
):
    """On a PostgreSQL of its own; the signal is that of --signal."""
    for name in ("initdb", "postgres", "pg_isready"):
        (tmp_path / name).write_text(AS_NOBODY.format(program=PROGRAMS[-1] / name))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setitem(slurm.env, "POSTGRES_BIN", str(tmp_path))
    server = submit("--nodelist=n1", str(folder), script="mlflow_server.sh")
    serves(server)
    assert f"from {folder}/postgres; user admin" in server.text
    ask = "import mlflow, sys; print(mlflow.MlflowClient('http://n1:5000').{}('kept'))"
    monkeypatch.setitem(slurm.env, "MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setitem(slurm.env, "MLFLOW_TRACKING_PASSWORD", (folder / "password").read_text().strip())
    slurm("python", "-c", ask.format("create_experiment"))
    slurm("scancel", "--batch", "--signal=USR1", server.id)
    serves(server, 2)
    assert server.field("Restarts") == "1"
    assert "the server was stopped, requeued" in server.text
    assert "name='kept'" in slurm("python", "-c", ask.format("get_experiment_by_name"))


@pytest.mark.parametrize(
    ("store", "message"),
    [
        (
            "mysql://somewhere",
            "STORE=mysql://somewhere: expected postgresql, sqlite, or postgresql://USER@HOST",
        ),
        ("postgresql://a:b@host/c", "STORE: an address must hold no password"),
    ],
    ids=["another database", "a password"],
)
def test_a_store_that_it_cannot_take_is_one_line(submit, folder, store, message):
    job = submit(f"--export=ALL,STORE={store}", str(folder), script="mlflow_server.sh")
    assert job.end() == "FAILED"
    assert job.text.startswith(f"error: {message}")
    assert job.text.count("\n") == 1
