"""Helpers of the tests of tracking: a follower, a server, and the points in a journal and in MLflow."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from trainer.tracking.follower import Follower
from trainer.tracking.journal import read

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# Three more processes otherwise, for evaluating language models.
SERVING = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class Console(list):
    """A list of the lines that the follower reports."""

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


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


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
                command,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env=ENVIRONMENT | SERVING,
                start_new_session=True,
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
