"""Deliverers that are killed at any moment, and several at once, on one SQLite store."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from tests.helpers.tracking_runs import ENVIRONMENT, client_of, journal_points, mlflow_points, wait_until
from trainer.tracking.address import uri_for
from trainer.tracking.journal import Journal

DELIVER = """if True:
    import sys, pathlib
    from trainer.tracking.address import uri_for
    from trainer.tracking.follower import Follower
    run = pathlib.Path(sys.argv[1])
    follower = Follower(run, uri_for(None, run.parent), "an experiment", run.name)
    sys.exit(0 if follower.close(100) else 1)
"""


def deliver(run, **keywords):
    return subprocess.Popen([sys.executable, "-c", DELIVER, run], env=ENVIRONMENT, **keywords)


@pytest.mark.slow
def test_killed_deliverers_leave_nothing_twice(outputs):
    run = outputs / "run"
    journal = Journal(run / "journal.jsonl")
    for images in range(3000):
        journal.metrics({"loss": images / 7, "rate": 1.0}, images)
        if images % 100 == 0:
            journal.write("tag", "at", str(images), images)
    journal.close()
    kills = 0
    for delay in (0.0, 0.1, 0.2, 0.4):
        process = deliver(run)
        before = (run / "delivered.json").read_bytes() if kills else b""
        wait_until(
            lambda b=before: (run / "delivered.json").is_file() and (run / "delivered.json").read_bytes() != b
        )
        time.sleep(delay)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2
    assert deliver(run).wait() == 0
    assert mlflow_points(uri_for(None, outputs)) == journal_points(run)


def tables(database):
    with contextlib.closing(sqlite3.connect(database)) as connection:
        names = sorted(connection.execute("SELECT name FROM sqlite_master").fetchall())
        return names, connection.execute("SELECT version_num FROM alembic_version").fetchall()


@pytest.mark.slow
def test_a_kill_while_the_store_is_made_breaks_nothing(tmp_path, empty_store):
    run = tmp_path / "run"
    journal = Journal(run / "journal.jsonl")
    journal.metrics({"loss": 1.0}, 1)
    journal.close()
    interrupted = 0
    for delay in (0.01, 0.4, 1.0, 2.0):
        process = deliver(run)
        wait_until(lambda: any(tmp_path.glob("*mlflow.db")) or any(tmp_path.glob("*mlflow.db.partial")))
        time.sleep(delay)
        process.kill()
        process.wait()
        if (tmp_path / "mlflow.db").exists():
            assert tables(tmp_path / "mlflow.db") == tables(empty_store), "half made"
        else:
            interrupted += 1
    assert deliver(run).wait() == 0
    assert mlflow_points(uri_for(None, tmp_path)) == journal_points(run)
    assert interrupted >= 2
    assert not list(tmp_path.glob(".mlflow.db.partial*"))


@pytest.mark.slow
def test_runs_that_start_together_share_one_store(tmp_path):
    runs = [tmp_path / name for name in "abc"]
    for number, run in enumerate(runs):
        journal = Journal(run / "journal.jsonl")
        for images in range(1500):
            journal.metrics({"loss": images + number}, images)
            journal.write("tag", "at", images, images) if images % 30 == 0 else None
        journal.close()
    processes = [deliver(run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for run in runs]
    assert [process.communicate()[0] for process in processes] == [b"", b"", b""]
    assert [process.returncode for process in processes] == [0, 0, 0]
    client = client_of(uri_for(None, tmp_path))
    experiment = client.get_experiment_by_name("an experiment").experiment_id
    run_ids = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment])}
    assert sorted(run_ids) == ["a", "b", "c"]
    for run in runs:
        history = client.get_metric_history(run_ids[run.name], "loss")
        assert [(p.step, p.timestamp, p.value) for p in history] == journal_points(run)["loss"]
