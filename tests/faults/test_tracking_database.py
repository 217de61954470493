"""PostgreSQL goes away below the MLflow server that four jobs track to; its backup is the same runs."""

import shlex
import signal

import pytest

from tests.helpers import ROOT
from tests.helpers.compose import ComposedServer
from tests.helpers.faults.tracked_runs import TinyRun, assert_delivered
from tests.helpers.postgres import postgres

pytestmark = pytest.mark.slow

EXPERIMENT = "four jobs"


@pytest.fixture
def database():
    with postgres() as database:
        yield database


@pytest.fixture
def serve(database, tmp_path):
    """Starts the server of docker/compose.yaml on a database of that name."""
    servers = []

    def serve(name: str) -> ComposedServer:
        servers.append(ComposedServer("mlflow", database, tmp_path, name))
        servers[-1].start()
        return servers[-1]

    yield serve
    for server in servers:
        server.kill()


def command(program: str) -> list[str]:
    """The words of a program in docker/README.md, behind those of Docker and before the file."""
    text = (ROOT / "docker" / "README.md").read_text()
    (line,) = [line for line in text.splitlines() if f" postgres {program} " in line]
    return shlex.split(line.partition(f" postgres {program} ")[2].partition("#")[0])


@pytest.fixture
def trainings(digits, tmp_path):
    """Starts four trainings at once that track to an address."""
    started = []

    def start(uri: str) -> list[TinyRun]:
        words = [f"tracking.uri={uri}", f"tracking.experiment={EXPERIMENT}"]
        started.extend(TinyRun(tmp_path, digits.root, *words, name=name, seconds=60) for name in "abcd")
        return started

    yield start
    for training in started:
        training.kill()


def test_four_jobs_and_a_database_that_is_restarted(database, serve, trainings, tmp_path):
    """Once it is killed, once shut down: what it had not committed is gone, and each point is there once."""
    server = serve("mlflow")
    jobs = trainings(server.uri)
    for job in jobs:
        job.wait_for(lambda job=job: job.delivered and job.delivered[0])
    for times, mode in enumerate((signal.SIGQUIT, signal.SIGINT), 1):
        database.stop(mode)
        for job in jobs:
            job.wait_for(lambda job=job, times=times: job.text.count("no tracking since") >= times)
        database.start()
        for job in jobs:
            job.wait_for(lambda job=job, times=times: job.text.count("tracking again") >= times)
            job.is_delivered_further()
    for job in jobs:
        job.process.send_signal(signal.SIGTERM)
    for job in jobs:
        job.end(1)
        assert_delivered(server.uri, EXPERIMENT, job.folder)

    with (tmp_path / "dump").open("wb") as dump:
        *words, target, _ = command("pg_dump")
        assert target == ">"
        database.client("pg_dump", *words, stdout=dump)
    server.stop()
    database.client("createdb", "restored")
    *words, source, _ = command("pg_restore")
    assert source == "<"
    words = [word.replace("--dbname=mlflow", "--dbname=restored") for word in words]
    with (tmp_path / "dump").open("rb") as dump:
        database.client("pg_restore", *words, stdin=dump)
    restored = serve("restored")
    for job in jobs:
        assert_delivered(restored.uri, EXPERIMENT, job.folder)
