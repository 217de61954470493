"""Tiny tracked runs, a proxy that spoils MLflow's answers, and the comparison of MLflow with the journal."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.helpers import ROOT
from tests.helpers.tracking_runs import client_of, journal_points, wait_until
from trainer.tracking.journal import read

BATCH = 16
ENDLESS = 100_000 * BATCH
TINY = [
    "data.size=16",
    "data.threads=1",
    "encoder.channels=[8, 16]",
    "encoder.fc=32",
    "objective.critic.units=32",
    f"batch={BATCH}",
    f"groups.norm={BATCH // 2}",
    f"log.every={10 * BATCH}",
    f"save.every={100 * BATCH}",
    "evaluate.every=0",
    "evaluate.at_end=false",
]
PATIENCE = 300  # seconds for anything: a busy machine is no fault


def progress(folder: Path) -> int:
    """Images seen, by the last whole line of a run's journal; -1 before there is one."""
    try:
        with open(folder / "journal.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            line = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
        return json.loads(line)["images"]
    except (FileNotFoundError, ValueError):
        return -1


class TinyRun:
    """A run of the quickstart, made tiny (some 7 ms of processor time a step), in a process of its own."""

    def __init__(self, outputs: Path, data: Path, *words: str, images: int = ENDLESS, name="run", seconds=10):
        self.folder = outputs / name
        places = [f"outputs={outputs}", f"run={name}", f"data.root={data}", f"images={images}"]
        self.output = outputs / f"{name}.txt"
        environment = {"OMP_NUM_THREADS": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "trainer/main.py", "recipe=quickstart", *TINY, *places, *words],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        return self.output.read_text()

    @property
    def images(self) -> int:
        return progress(self.folder)

    @property
    def delivered(self) -> list[int]:
        """Bytes of the journal that are in MLflow, by address."""
        with suppress(FileNotFoundError):
            known = json.loads((self.folder / "delivered.json").read_text())
            return [entry["offset"] for entry in known.values()]
        return []

    def wait_for(self, condition) -> None:
        """Waits while it trains."""

        def met():
            assert self.process.poll() is None, self.text
            return condition()

        wait_until(met, PATIENCE)

    def goes_on(self, steps: int) -> None:
        """Waits until training has made so many more steps."""
        until = max(0, self.images) + steps * BATCH
        self.wait_for(lambda: self.images >= until)

    def is_delivered_further(self) -> None:
        """Waits until more of the journal is in MLflow than now."""
        now = self.delivered
        self.wait_for(lambda: self.delivered != now)

    def end(self, status: int = 0) -> str:
        """Waits for the end; what it printed."""
        assert self.process.wait(PATIENCE) == status, self.text
        return self.text

    def stop(self) -> str:
        """Ends it as Slurm does, at a checkpoint."""
        self.process.send_signal(signal.SIGTERM)
        return self.end(1)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Proxy:
    """An HTTP proxy before the server at `server_port`; `mode` says what happens to requests from now on.

    pass: nothing. slow: answers come 0.3 s later. hold: the server does what it is asked, its answers come
    only after `release`. late: the server is asked 4 s later, when a client of 3 s patience has given up.
    error, page, empty: the proxy answers by itself, with status 500, a page with status 200, or nothing with
    status 200. With `only`, this befalls requests whose path has it in it.
    """

    ANSWERS = {
        "error": (500, "text/html", b"<h1>Internal Server Error</h1>\nsecond line"),
        "page": (200, "text/html", b"<html>\n<h1>Welcome to this network: log in</h1></html>"),
        "empty": (200, "text/plain", b""),
    }

    def __init__(self, server_port: int, port: int = 0):
        self.server_port = server_port
        self.mode, self.only = "pass", ""
        self.seen: list[tuple[str, str]] = []
        self._released = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                proxy._handle(self)

            do_GET = do_PUT = do_PATCH = do_DELETE = do_POST

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def count(self, mode: str, path: str = "") -> int:
        """How many requests of such a path were met in this mode."""
        return sum(met == mode and path in where for met, where in self.seen)

    def release(self) -> None:
        """Everything passes from now on, what is held too."""
        self.mode, self.only = "pass", ""
        released, self._released = self._released, threading.Event()
        released.set()

    def close(self) -> None:
        self.release()
        self._http.shutdown()
        self._http.server_close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        mode, released = self.mode if self.only in request.path else "pass", self._released
        self.seen.append((mode, request.path))
        if mode == "late":
            time.sleep(4)
        status, kind, answer = self.ANSWERS.get(mode) or self._forward(request, body)
        if mode == "slow":
            time.sleep(0.3)
        if mode == "hold":
            released.wait()
        with suppress(OSError):  # the client has given up
            request.send_response(status)
            request.send_header("Content-Type", kind)
            request.send_header("Content-Length", str(len(answer)))
            request.end_headers()
            request.wfile.write(answer)

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, str, bytes]:
        server = http.client.HTTPConnection("127.0.0.1", self.server_port, timeout=PATIENCE)
        headers = {"Content-Type": request.headers.get("Content-Type", "application/json")}
        try:
            server.request(request.command, request.path, body, headers)
            answer = server.getresponse()
            return answer.status, answer.headers.get("Content-Type", "application/json"), answer.read()
        finally:
            server.close()


def assert_delivered(uri: str, experiment: str, folder: Path) -> None:
    """MLflow has what the run's journal has, every point once and in order, in one run."""
    client = client_of(uri)
    place = client.get_experiment_by_name(experiment).experiment_id
    last = {(r["kind"], r["name"]): r for r, _ in read(folder / "journal.jsonl")}
    journal_id = last["tag", "journal.id"]["value"]
    (mlflow_run,) = client.search_runs([place], f"tags.`journal.id` = '{journal_id}'")
    expected = journal_points(folder)
    assert len(expected["loss"]) > 5
    assert mlflow_run.data.metrics.keys() == expected.keys()
    for name, points in expected.items():
        history = client.get_metric_history(mlflow_run.info.run_id, name)
        assert [(point.step, point.timestamp, point.value) for point in history] == points, name
    named = {kind: {n: r["value"] for (k, n), r in last.items() if k == kind} for kind, _ in last}
    assert mlflow_run.data.params == {name: str(value) for name, value in named["parameter"].items()}
    assert named["tag"].keys() <= mlflow_run.data.tags.keys()
    for name, value in named["tag"].items():
        assert mlflow_run.data.tags[name] == str(value)
    for relative in named.get("artifact", {}).values():
        path = Path(relative)
        parent = path.parent.as_posix() if path.parent.name else None
        listed = {file.path: file.file_size for file in client.list_artifacts(mlflow_run.info.run_id, parent)}
        assert listed[path.as_posix()] == (folder / path).stat().st_size
    *_, end = named["end"].values()
    assert mlflow_run.info.status == end
