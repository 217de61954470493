"""A real PostgreSQL on loopback, as the service `postgres` of docker/compose.yaml is one."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.tracking_runs import free_port

PASSWORD = "p@ss:w/rd%20"  # would break an address that it is pasted into


class Postgres:
    """PostgreSQL with the user `mlflow`, a password and the database `mlflow`.

    Attributes:
        port: of 127.0.0.1; the same after it was stopped and started again.
        environment: libpq's variables of whoever speaks to it.
    """

    def __init__(self, programs: Path, folder: Path):
        self.programs, self.folder, self.port = programs, folder, free_port()
        self.environment = {"PGPASSWORD": PASSWORD}
        self.process: subprocess.Popen | None = None
        # The server refuses to be root.
        root = os.geteuid() == 0
        self._user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if root else {}
        (folder / "password").write_text(PASSWORD)
        if root:
            shutil.chown(folder, "nobody")
            shutil.chown(folder / "password", "nobody")
        words = ["--pgdata", folder / "data", "--username=mlflow", "--no-sync", "--auth=scram-sha-256"]
        words += [f"--pwfile={folder / 'password'}"]
        subprocess.run([programs / "initdb", *words], **self._user, check=True, capture_output=True)

    @property
    def uri(self) -> str:
        """MLflow's address of the database `mlflow`; the password is in the environment."""
        return f"postgresql+psycopg2://mlflow@127.0.0.1:{self.port}/mlflow"

    def start(self) -> None:
        words = ["-D", self.folder / "data", "-p", str(self.port), "-k", self.folder, "-F"]
        self.process = subprocess.Popen(
            [self.programs / "postgres", *words], **self._user, stderr=(self.folder / "log").open("a")
        )
        check = [self.programs / "pg_isready", "--quiet", "--host=127.0.0.1", f"--port={self.port}"]
        until(check, 120, self.process)

    def stop(self, mode: int = signal.SIGINT) -> None:
        """Ends it: SIGINT is its fast shutdown, SIGQUIT the immediate one, after which it replays its log."""
        self.process.send_signal(mode)
        self.process.wait(120)

    def client(self, program: str, *words: str, **options) -> subprocess.CompletedProcess:
        """Runs createdb, psql, pg_dump or pg_restore on it."""
        where = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": "mlflow"}
        environment = os.environ | where | self.environment
        return subprocess.run([self.programs / program, *words], env=environment, check=True, **options)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL that runs; the test is skipped where none is installed."""
    pytest.importorskip("psycopg2", reason="psycopg2 missing: pip install psycopg2-binary")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL missing: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        server = Postgres(programs[-1], folder)
        try:
            server.start()
            server.client("createdb", "mlflow")
            yield server
        finally:
            if server.process is not None and server.process.poll() is None:
                server.stop()
    finally:
        shutil.rmtree(folder)


def until(command: list, seconds: float, process: subprocess.Popen, **options) -> None:
    """Waits for a command to succeed while a process lives."""
    end = time.monotonic() + seconds
    while subprocess.run(command, capture_output=True, **options).returncode:
        assert process.poll() is None, "it ended"
        assert time.monotonic() < end, f"not healthy after {seconds} s"
        time.sleep(0.3)
