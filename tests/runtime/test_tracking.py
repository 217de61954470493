"""Delivery to MLflow: a real SQLite store and a real server, killed, stopped and started again."""

import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from data_pipelines.errors import UserError
from trainer.runtime import mlflow_store
from trainer.runtime.journal import Journal, open_locked, read
from trainer.runtime.tracking import Follower, main, open_command, uri_for

mlflow_store.configure()
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """MLflow's SQLite file, made once: it takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    mlflow_store.create_sqlite(folder / "mlflow.db", folder / "mlartifacts")
    assert [path.name for path in sorted(folder.iterdir())] == ["mlflow.db", "mlflow.db.lock"]
    return folder / "mlflow.db"


@pytest.fixture
def outputs(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


class Console(list):
    """Keeps the lines that the follower reports."""

    __call__ = list.append


def follow(run, uri, console=print):
    return Follower(run, uri, "an experiment", run.name, console)


def client_of(uri):
    from mlflow import MlflowClient

    return MlflowClient(uri)


def mlflow_run(uri, experiment="an experiment"):
    client = client_of(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return client, run


def journal_points(run):
    points = {}
    for record, _ in read(run / "journal.jsonl"):
        if record["kind"] == "metric":
            point = (record["images"], round(record["time"] * 1000), record["value"])
            points.setdefault(record["name"], []).append(point)
    return points


def mlflow_points(uri):
    client, run = mlflow_run(uri)
    points = {}
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        points[name] = [(point.step, point.timestamp, point.value) for point in history]
    return points


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


# ---- addresses -----------------------------------------------------------------------------------


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    database = uri_for(None, "out puts")
    assert database == f"sqlite:///{tmp_path}/out puts/mlflow.db"
    assert uri_for("sqlite:///my.db", "outputs") == f"sqlite:///{tmp_path}/my.db"
    assert uri_for("http://host:5000/", "outputs") == "http://host:5000"
    assert uri_for("none", "outputs") is None
    assert (
        open_command(database) == f"mlflow ui --backend-store-uri 'sqlite:///{tmp_path}/out puts/mlflow.db'"
    )
    assert open_command("https://me:secret@host:5000") == "https://host:5000"


@pytest.mark.parametrize(
    "uri", ["localhost:5000", "./mlruns", "http://", "sqlite://", "file:///x", "ftp://a:b@c"]
)
def test_what_is_no_address_is_one_line(uri):
    with pytest.raises(UserError, match=r"tracking.uri: .* is no address") as caught:
        uri_for(uri, "outputs")
    assert "a:b" not in str(caught.value)


# ---- SQLite --------------------------------------------------------------------------------------


def test_everything_in_the_journal_arrives(outputs):
    uri, run, console = uri_for(None, outputs), outputs / "first", Console()
    journal = Journal(run / "journal.jsonl")
    follower = follow(run, uri, console)
    (run / "figures").mkdir()
    (run / "figures" / "filters.png").write_bytes(b"picture")
    (run / "export" / "deep").mkdir(parents=True)
    (run / "export" / "deep" / "encoder.safetensors").write_bytes(b"weights")
    journal.write("parameter", "optimizer.lr", 1e-3, 0)
    journal.write("tag", "world", "2 ranks", 0)
    for images in range(0, 12000, 10):
        journal.metrics({"loss": 1 / (images + 1), "rate": 5.0}, images)
    journal.metrics({"nan": math.nan, "up": math.inf, "down": -math.inf}, 12000)
    journal.write("resumed", "resumed", 12000, 12000)
    journal.write("warning", "data", "shard 3 is truncated", 12000)
    journal.write("artifact", "filters", "figures/filters.png", 12000)
    journal.write("artifact", "encoder", "export", 12000)
    journal.write("end", "end", "FINISHED", 12000)
    assert follower.close()
    journal.close()
    assert console == []

    client, found = mlflow_run(uri)
    points, expected = mlflow_points(uri), journal_points(run)
    assert math.isnan(points.pop("nan")[0][2])
    assert points.pop("up")[0][2] == sys.float_info.max  # SQL knows no infinity
    assert points.pop("down")[0][2] == -sys.float_info.max
    assert points == {name: expected[name] for name in ("loss", "rate")}
    assert len(points["loss"]) == 1200
    assert found.data.params == {"optimizer.lr": "0.001"}
    tags = found.data.tags
    assert tags["journal.id"] == journal.id
    assert tags["world"] == "2 ranks"
    assert tags["warning.data"] == "shard 3 is truncated"
    assert tags["resumed"] == "1 times, the last at 12000 images"
    assert found.info.run_name == "first"
    assert found.info.status == "FINISHED"
    last = list(read(journal.path))[-1][0]
    assert found.info.end_time == round(last["time"] * 1000)
    artifacts = outputs / "mlartifacts" / "an_experiment" / found.info.run_id / "artifacts"
    assert (artifacts / "figures" / "filters.png").read_bytes() == b"picture"
    assert (artifacts / "export" / "deep" / "encoder.safetensors").read_bytes() == b"weights"
    assert [f.path for f in client.list_artifacts(found.info.run_id)] == ["export", "figures"]


def test_a_second_start_continues_the_same_run(outputs):
    uri, run = uri_for(None, outputs), outputs / "run"
    for start in (0, 100, 200):
        journal = Journal(run / "journal.jsonl")
        follower = follow(run, uri)
        if start:
            journal.write("resumed", "resumed", start, start)
        journal.metrics({"loss": start}, start)
        journal.write("end", "end", "KILLED", start)
        assert follower.close()
        journal.close()
        if start == 100:
            (
                run / "delivered.json"
            ).unlink()  # lost, with the offset and the run's id: everything is sent again
    journal = Journal(run / "journal.jsonl")
    journal.write("resumed", "resumed", 200, 200)
    follower = follow(run, uri)
    assert follower.close()
    journal.close()
    _, found = mlflow_run(uri)
    assert mlflow_points(uri) == journal_points(run)
    assert found.info.status == "RUNNING"
    assert found.data.tags["resumed"] == "3 times, the last at 200 images"


def test_a_run_deleted_in_mlflow_is_made_anew(outputs):
    uri, run = uri_for(None, outputs), outputs / "run"
    journal, console = Journal(run / "journal.jsonl"), Console()
    follower = follow(run, uri, console)
    journal.metrics({"loss": 1.0}, 1)
    wait_until(lambda: follower._delivery._run_id and not follower._delivery.waiting())
    client_of(uri).delete_run(follower._delivery._run_id)
    journal.metrics({"loss": 2.0}, 2)
    assert follower.close()
    journal.close()
    assert console == []
    assert mlflow_points(uri) == journal_points(run)


def test_a_refused_record_is_named_and_holds_nothing_up(outputs):
    uri, run, console = uri_for(None, outputs), outputs / "run", Console()
    journal = Journal(run / "journal.jsonl")
    journal.write("parameter", "lr", 1, 0)
    journal.write("parameter", "lr", 2, 50)
    journal.write("parameter", "seed", 3, 50)
    journal.metrics({"a": 1.0, "b#\n": 2.0, "c": 3.0}, 50)
    journal.write("artifact", "gone", "figures/gone.png", 50)
    journal.write("artifact", "foreign", "../mlflow.db", 50)
    journal.write("end", "end", "NO STATUS", 50)
    journal.write("end", "end", "FAILED", 50)
    follower = follow(run, uri, console)
    assert follower.close()
    journal.close()
    _, found = mlflow_run(uri)
    assert found.data.params == {"lr": "1", "seed": "3"}
    assert found.data.metrics == {"a": 1.0, "c": 3.0}
    assert found.info.status == "FAILED"
    refused = [line.split(" refused the ")[1].split(" (")[0] for line in console]
    assert refused == [
        "parameter 'lr' at 50 images",
        r"metric 'b#\n' at 50 images",
        "artifact 'gone' at 50 images",
        "artifact 'foreign' at 50 images",
        "end 'end.1' at 50 images",
    ]


def test_a_deleted_experiment_is_told_and_waited_for(outputs):
    uri, run, console = uri_for(None, outputs), outputs / "run", Console()
    client = client_of(uri)
    experiment = client.create_experiment("an experiment", artifact_location=str(outputs / "mlartifacts"))
    client.delete_experiment(experiment)
    journal = Journal(run / "journal.jsonl")
    journal.metrics({"loss": 1.0}, 1)
    follower = follow(run, uri, console)
    wait_until(lambda: console)
    assert "'an experiment' was deleted there; restore it with `mlflow experiments restore" in console[0]
    client.restore_experiment(experiment)
    assert follower.close()
    journal.close()
    assert len(console) == 2
    assert "tracking again" in console[1]
    assert mlflow_points(uri) == journal_points(run)


def test_a_locked_store_is_waited_for(outputs):
    uri, run, console = uri_for(None, outputs), outputs / "run", Console()
    journal = Journal(run / "journal.jsonl")
    journal.metrics({"loss": 1.0}, 1)
    other = sqlite3.connect(outputs / "mlflow.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(1.5, lambda: other.execute("COMMIT")).start()
    follower = follow(run, uri, console)
    assert follower.close()
    journal.close()
    assert console == []
    assert mlflow_points(uri) == journal_points(run)


def test_two_processes_do_not_deliver_one_run(outputs, capsys):
    run = outputs / "run"
    journal = Journal(run / "journal.jsonl")
    journal.close()
    open_locked(run / ".delivered.lock")
    assert main(["sync", str(run)]) == 1
    assert "another process is delivering this run" in capsys.readouterr().out


# ---- without a network ---------------------------------------------------------------------------


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_an_address_that_does_not_answer_is_one_line_and_sync_delivers_later(outputs, capsys):
    run, console = outputs / "run", Console()
    uri = f"http://user:secret@127.0.0.1:{free_port()}"
    journal = Journal(run / "journal.jsonl")
    follower = follow(run, uri, console)
    journal.metrics({"loss": 1.0}, 1)
    wait_until(lambda: console)
    start = time.monotonic()
    assert not follower.close()
    assert time.monotonic() - start < 10
    assert len(console) == 2
    for line in console:
        assert "secret" not in line
        assert "\n" not in line
        assert f"python -m trainer.runtime.tracking sync {run} --uri http://127.0.0.1" in line
    assert "Connection refused" in console[0]
    journal.close()

    Journal(outputs / "other" / "journal.jsonl").close()
    assert main(["sync", str(outputs), "--uri", uri]) == 1
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert "Connection refused" in out[0]
    assert "secret" not in out[0]
    assert "not delivered either" in out[1]

    (run / "recipe.yaml").write_text("tracking: {uri: none, experiment: an experiment}")
    assert main(["sync", str(outputs)]) == 0
    assert main(["sync", str(run)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split(": ", 1)[1][:12] for line in out[2:]] == ["nothing new"]
    assert mlflow_points(uri_for(None, outputs)) == journal_points(run)
    assert client_of(uri_for(None, outputs)).get_experiment_by_name("hybrid-infomax") is not None


def test_sync_of_a_folder_without_runs_is_one_line(tmp_path, capsys):
    assert main(["sync", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


# ---- killed --------------------------------------------------------------------------------------

DELIVER = """if True:
    import sys, pathlib
    from trainer.runtime.tracking import Follower, uri_for
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


@pytest.mark.slow
def test_a_kill_while_the_store_is_made_breaks_nothing(tmp_path):
    run = tmp_path / "run"
    journal = Journal(run / "journal.jsonl")
    journal.metrics({"loss": 1.0}, 1)
    journal.close()
    interrupted = 0
    for delay in (0.01, 0.4, 1.0, 2.0):
        process = deliver(run)
        wait_until(lambda: (tmp_path / "mlflow.db").exists() or (tmp_path / ".mlflow.db.partial").exists())
        time.sleep(delay)
        process.kill()
        process.wait()
        interrupted += not (tmp_path / "mlflow.db").exists()
    assert interrupted >= 2
    assert deliver(run).wait() == 0
    assert mlflow_points(uri_for(None, tmp_path)) == journal_points(run)
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
    found = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment])}
    assert sorted(found) == ["a", "b", "c"]
    for run in runs:
        history = client.get_metric_history(found[run.name], "loss")
        assert [(p.step, p.timestamp, p.value) for p in history] == journal_points(run)["loss"]


# ---- a server ------------------------------------------------------------------------------------


class Server:
    """A real MLflow server on loopback, that can be stopped and started again at the same address."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "kept")]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, env=ENVIRONMENT, start_new_session=True
            )
        wait_until(self.answers, 120)

    def answers(self):
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200
        except OSError:
            return False

    def stop(self):
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "server.db")
    server = Server(tmp_path)
    yield server
    server.stop()


@pytest.mark.slow
def test_a_server_that_comes_late_and_goes_away(server, tmp_path):
    run, console = tmp_path / "outputs" / "run", Console()
    journal = Journal(run / "journal.jsonl")
    follower = follow(run, server.uri, console)
    images = 0

    def train(seconds):
        nonlocal images
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            images += 1
            start = time.monotonic()
            journal.metrics({"loss": 1 / images, "rate": float(images)}, images)
            assert time.monotonic() - start < 1, "training waited"
            time.sleep(0.005)

    train(2)
    wait_until(lambda: len(console) == 1)
    server.start()
    wait_until(lambda: len(console) == 2)
    train(2)
    time.sleep(7)  # longer than the server keeps an idle connection
    train(2)
    assert len(console) == 2, "a connection that was closed for idleness is no outage"
    server.stop()
    train(3)
    wait_until(lambda: len(console) == 3)
    server.start()
    train(1)
    journal.metrics({"nan": math.nan, "up": math.inf}, images)
    (run / "encoder.safetensors").write_bytes(b"weights")
    journal.write("artifact", "encoder", "encoder.safetensors", images)
    journal.write("artifact", "gone", "gone", images)
    journal.write("end", "end", "FINISHED", images)
    assert follower.close()
    journal.close()
    assert len(console) == 5, console
    told = (
        "no tracking since",
        "tracking again",
        "no tracking since",
        "refused the artifact 'gone'",
        "tracking again",
    )
    assert all(words in line for words, line in zip(told, console, strict=True)), console

    points, expected = mlflow_points(server.uri), journal_points(run)
    assert math.isnan(points.pop("nan")[0][2])
    assert points.pop("up")[0][2] == sys.float_info.max
    assert points == {name: expected[name] for name in ("loss", "rate")}
    assert len(points["loss"]) == images
    client, found = mlflow_run(server.uri)
    assert found.info.status == "FINISHED"
    assert [f.path for f in client.list_artifacts(found.info.run_id)] == ["encoder.safetensors"]
    assert list((tmp_path / "kept").rglob("encoder.safetensors"))


@pytest.mark.slow
def test_a_server_of_errors_is_an_outage_and_nothing_is_skipped(tmp_path):
    code = """if True:
        import http.server, sys
        class Errors(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_error(int(sys.argv[2]))
            do_POST = do_GET
            def log_message(self, *_): pass
        http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Errors).serve_forever()
    """
    for status in ("500", "403", "404"):
        port, console, run = free_port(), Console(), tmp_path / status
        errors = subprocess.Popen([sys.executable, "-c", code, str(port), status])
        journal = Journal(run / "journal.jsonl")
        journal.metrics({"loss": 1.0}, 1)
        follower = follow(run, f"http://127.0.0.1:{port}", console)
        wait_until(lambda c=console: c)
        assert not follower.close()
        journal.close()
        errors.kill()
        errors.wait()
        assert len(console) == 2
        assert status in console[0]
        assert "\n" not in console[0]
        assert (
            json.loads((run / "delivered.json").read_text() if (run / "delivered.json").exists() else "{}")
            == {}
        )
