"""Delivery to a real MLflow server that comes late, goes away and comes back; and to one that only errs."""

import json
import math
import shutil
import subprocess
import sys
import time

import pytest

from tests.helpers.tracking_runs import (
    Console,
    Server,
    follow,
    free_port,
    journal_points,
    mlflow_points,
    mlflow_run,
    wait_until,
)
from trainer.tracking.journal import Journal


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
            assert time.monotonic() - start < 5, "training waited"
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
    wait_until(lambda: len(console) == 4)
    journal.metrics({"nan": math.nan, "up": math.inf}, images)
    (run / "encoder.safetensors").write_bytes(b"weights")
    journal.write("artifact", "encoder", "encoder.safetensors", images)
    journal.write("artifact", "gone", "gone", images)
    journal.write("end", "end", "FINISHED", images)
    assert follower.close()
    journal.close()
    assert len(console) == 5, console
    expected = (
        "no tracking since",
        "tracking again",
        "no tracking since",
        "tracking again",
        "refused the artifact 'gone'",
    )
    assert all(words in line for words, line in zip(expected, console, strict=True)), console

    points, expected = mlflow_points(server.uri), journal_points(run)
    assert math.isnan(points.pop("nan")[0][2])
    assert points.pop("up")[0][2] == sys.float_info.max
    assert points == {name: expected[name] for name in ("loss", "rate")}
    assert len(points["loss"]) == images
    client, tracked = mlflow_run(server.uri)
    assert tracked.info.status == "FINISHED"
    assert [f.path for f in client.list_artifacts(tracked.info.run_id)] == ["encoder.safetensors"]
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
