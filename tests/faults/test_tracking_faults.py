"""What may befall MLflow while a run trains: training goes on, and MLflow ends up equal to the journal."""

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial

import pytest

from tests.helpers import ROOT
from tests.helpers.faults.tracked_runs import BATCH, Proxy, TinyRun, assert_delivered
from tests.helpers.tracking_runs import Server, client_of, free_port
from trainer.tracking import mlflow_store
from trainer.tracking.__main__ import main

pytestmark = pytest.mark.slow

SHORT = 100 * BATCH


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real MLflow server, the same for all tests here; each has an experiment of its own."""
    folder = tmp_path_factory.mktemp("server")
    mlflow_store.configure()
    mlflow_store.create_sqlite(folder / "server.db", folder / "kept")
    server = Server(folder)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def proxy(server):
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def run(tmp_path, digits, request):
    """Starts a tiny run that is tracked at `uri`, in an experiment that bears the test's name."""
    started = []

    def start(uri, **keywords):
        words = ["tracking.experiment=" + request.node.name.partition("[")[0]]
        words += [f"tracking.uri={uri}"] if uri else []
        started.append(TinyRun(tmp_path, digits.root, *words, **keywords))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def printed(training: TinyRun, words: str, times: int) -> bool:
    return training.text.count(words) == times


# ---- the server goes away --------------------------------------------------------------------------


def test_a_server_killed_for_the_middle_third(server, run):
    images = 1500 * BATCH
    training = run(server.uri, images=images)
    training.wait_for(lambda: training.images >= images // 3 and training.delivered)
    server.stop()
    training.wait_for(lambda: training.images >= images * 2 // 3)
    training.process.send_signal(signal.SIGSTOP)  # else a quick machine is done before a server has started
    server.start()
    training.process.send_signal(signal.SIGCONT)
    text = training.end()
    assert text.count("warning: no tracking since") == 1
    assert text.count("tracking again after") == 1
    assert_delivered(server.uri, "test_a_server_killed_for_the_middle_third", training.folder)


def test_no_network_at_all_then_sync(server, run, tmp_path, capsys):
    port = free_port()
    refused = run(f"http://127.0.0.1:{port}", images=SHORT, name="refused")
    unknown = run("http://mlflow.invalid:5000", images=SHORT, name="unknown")
    for training in (refused, unknown):
        text = training.end()
        assert text.count("is not wholly in MLflow") == 1
        assert "Traceback" not in text
        assert not training.delivered

    proxy = Proxy(server.port, port)  # now something answers at the first one's address
    command = [sys.executable, "-m", "trainer.tracking", "sync", tmp_path]
    synced = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    proxy.close()
    assert synced.returncode == 1
    assert f"delivered to http://127.0.0.1:{port}" in synced.stdout
    assert f"{unknown.folder}: not delivered: MLflow at http://mlflow.invalid:5000: " in synced.stdout
    assert_delivered(server.uri, "test_no_network_at_all_then_sync", refused.folder)

    assert main(["sync", str(tmp_path), "--uri", server.uri]) == 0
    capsys.readouterr()
    for training in (refused, unknown):  # one of them for the second time
        assert_delivered(server.uri, "test_no_network_at_all_then_sync", training.folder)


# ---- it answers, but how ---------------------------------------------------------------------------


def test_a_server_that_is_slow_and_hangs(server, proxy, run):
    proxy.mode, proxy.only = "late", "runs/create"  # the run is made after the client has given up: twice
    training = run(proxy.uri, seconds=3)
    training.wait_for(lambda: proxy.count("late") == 2)
    proxy.mode, proxy.only = "slow", ""
    training.wait_for(lambda: training.delivered)
    training.is_delivered_further()
    proxy.mode = "hold"
    training.wait_for(lambda: proxy.count("hold") >= 2)
    training.goes_on(500)  # without any answer
    assert "Read timed out" in training.text
    proxy.release()
    training.is_delivered_further()
    training.stop()
    assert_delivered(server.uri, "test_a_server_that_is_slow_and_hangs", training.folder)


def test_wrong_answers_for_a_while(server, proxy, run):
    training = run(proxy.uri)
    training.wait_for(lambda: training.delivered)
    for mode in ("error", "page", "empty", "error"):
        again = training.text.count("tracking again") + 1
        proxy.mode = mode
        proxy.seen.clear()
        training.wait_for(lambda: len(proxy.seen) >= 4)  # two failures at least
        proxy.mode = "pass"
        training.wait_for(partial(printed, training, "tracking again", again))
    text = training.stop()
    assert "refused the" not in text
    assert text.count("no tracking since") == text.count("tracking again") == 4
    assert_delivered(server.uri, "test_wrong_answers_for_a_while", training.folder)


@pytest.mark.parametrize("mode", ["page", "empty", "error"])
def test_a_login_page_in_place_of_the_artifacts(server, proxy, run, tmp_path, capsys, mode):
    proxy.mode, proxy.only = mode, "mlflow-artifacts"
    training = run(proxy.uri, images=SHORT)
    text = training.end()
    assert text.count("is not wholly in MLflow") == 1
    assert "cannot store the artifact" in text
    assert training.delivered == [(training.folder / "journal.jsonl").stat().st_size]  # nothing else waits
    assert main(["sync", str(tmp_path)]) == 1
    proxy.release()
    assert main(["sync", str(tmp_path)]) == 0
    capsys.readouterr()
    assert_delivered(server.uri, "test_a_login_page_in_place_of_the_artifacts", training.folder)


@pytest.mark.parametrize("where", ["server", "file"])
def test_a_locked_database(server, run, tmp_path, where):
    uri = server.uri if where == "server" else None
    training = run(uri, seconds=3)
    training.wait_for(lambda: training.delivered)
    database = server.folder / "server.db" if where == "server" else tmp_path / "mlflow.db"
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        training.goes_on(500)
        if where == "server":  # which waits longer than the client
            training.wait_for(lambda: "no tracking since" in training.text)
    training.is_delivered_further()
    training.stop()
    uri = uri or f"sqlite:///{database}"
    assert_delivered(uri, "test_a_locked_database", training.folder)


# ---- several, and the run itself dies --------------------------------------------------------------


@pytest.mark.parametrize("where", ["server", "file"])
def test_two_runs_at_once(server, run, tmp_path, where):
    uri = server.uri if where == "server" else None
    both = [run(uri, images=5 * SHORT, name=name) for name in "ab"]
    for training in both:
        assert "warning" not in training.end()
    uri = uri or f"sqlite:///{tmp_path / 'mlflow.db'}"
    for training in both:
        assert_delivered(uri, "test_two_runs_at_once", training.folder)
    place = client_of(uri).get_experiment_by_name("test_two_runs_at_once").experiment_id
    assert len(client_of(uri).search_runs([place])) == 2


def test_a_run_killed_while_it_delivers(server, proxy, run):
    images = 1500 * BATCH
    for path in ("runs/create", "runs/log-batch"):  # MLflow has it, the run will never know
        proxy.mode, proxy.only = "hold", path
        training = run(proxy.uri, images=images, seconds=60)
        training.wait_for(lambda: proxy.count("hold"))
        training.goes_on(120)
        training.kill()
        proxy.release()
    training = run(proxy.uri, images=images)
    assert training.end().count("resumed at") == 2
    assert_delivered(server.uri, "test_a_run_killed_while_it_delivers", training.folder)
