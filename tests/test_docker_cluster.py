"""docker/: the server of a cluster, which asks everybody for a password, on a real PostgreSQL."""

import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.helpers.compose import ComposedServer
from tests.helpers.faults.tracked_runs import BATCH, PATIENCE, TinyRun, assert_delivered
from tests.helpers.postgres import PASSWORD as OF_DATABASE
from tests.helpers.postgres import Postgres, postgres
from tests.helpers.tracking_runs import Console, client_of, follow, mlflow_run, wait_until
from trainer.tracking.delivery import delivered
from trainer.tracking.journal import Journal

pytestmark = pytest.mark.slow

ADMIN, SOMEBODY, OTHER, KEY = "adm1n:p@ss/%41", "s0mebody:p@ss%20", "0ther's p@ss", "k3y-of-forms"
HOSTS = "mlflow.example.org:*"


@pytest.fixture(scope="module")
def database():
    with postgres() as database:
        yield database


@pytest.fixture(scope="module")
def server(database, tmp_path_factory):
    """The service with two users who are no administrators."""
    from mlflow.server import get_app_client

    secrets = {"MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN, "MLFLOW_FLASK_SERVER_SECRET_KEY": KEY}
    folder = tmp_path_factory.mktemp("server")
    server = ComposedServer("cluster", database, folder, MLFLOW_SERVER_ALLOWED_HOSTS="", **secrets)
    hosts = f"127.0.0.1:{server.port},{HOSTS}"
    server.environment["MLFLOW_SERVER_ALLOWED_HOSTS"] += hosts
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        become(patch, "admin", ADMIN)
        users = get_app_client("basic-auth", tracking_uri=server.uri)
        users.create_user("somebody", SOMEBODY)
        users.create_user("other", OTHER)
    yield server
    server.kill()


def become(monkeypatch: pytest.MonkeyPatch, user: str, password: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def status(server: ComposedServer, **headers: str) -> int:
    """What a request that shows no password is answered."""
    address = f"{server.uri}/api/2.0/mlflow/experiments/search?max_results=1"
    try:
        return urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "`MLFLOW_FLASK_SERVER_SECRET_KEY` environment variable"),
        ({"MLFLOW_FLASK_SERVER_SECRET_KEY": KEY}, "Set the MLFLOW_AUTH_ADMIN_PASSWORD environment variable"),
        (
            {"MLFLOW_FLASK_SERVER_SECRET_KEY": KEY, "MLFLOW_AUTH_ADMIN_PASSWORD": "password1234"},
            "Refusing to use the insecure default password",
        ),
    ],
    ids=["no secrets", "no password", "the password that was once shipped"],
)
def test_it_does_not_start_without_a_password_of_its_own(database, tmp_path, variables, message):
    """It ends before it listens."""
    name = f"refused_{len(variables)}"
    database.client("createdb", name)
    refused = ComposedServer("cluster", database, tmp_path, name, **variables)
    try:
        assert refused.launch().wait(PATIENCE) != 0
    finally:
        refused.kill()
    assert message in refused.log


def test_a_training_delivers_with_a_users_password(server, digits, tmp_path, monkeypatch):
    become(monkeypatch, "somebody", SOMEBODY)
    words = [f"tracking.uri={server.uri}", "tracking.experiment=shared"]
    training = TinyRun(tmp_path, digits.root, *words, images=100 * BATCH, seconds=60)
    assert "warning" not in training.end()
    assert_delivered(server.uri, "shared", training.folder)
    secrets = [ADMIN, SOMEBODY, OTHER, KEY, OF_DATABASE]
    written = [path.read_text(errors="replace") for path in training.folder.rglob("*") if path.is_file()]
    lines = subprocess.run(["ps", "-e", "-ww", "-o", "args"], capture_output=True, text=True).stdout
    assert "basic-auth" in lines
    for text in [*written, training.text, server.log, lines]:
        assert not [secret for secret in secrets if secret in text]


def test_who_shows_no_password_or_another_host_is_let_nowhere(server, tmp_path, monkeypatch):
    assert status(server) == 401
    assert status(server, Host="mlflow.example.org:5000") == 401
    assert status(server, Host="elsewhere.example.org:5000") == 403
    become(monkeypatch, "somebody", "a guess")
    run, console = tmp_path / "outputs" / "refused", Console()
    journal = written(run)
    follower = follow(run, server.uri, console)
    assert not follower.close()
    journal.close()
    assert any("401" in line for line in console), console
    assert not [line for line in console if "a guess" in line]


def written(run: Path) -> Journal:
    journal = Journal(run / "journal.jsonl")
    journal.metrics({"loss": 0.5}, 128)
    return journal


def test_a_user_delivers_into_the_experiment_of_another(server, tmp_path, monkeypatch):
    """A run that was made twice may stay: only who has made the experiment may delete there."""
    become(monkeypatch, "somebody", SOMEBODY)
    place = client_of(server.uri).create_experiment("an experiment")
    become(monkeypatch, "other", OTHER)
    run, console = tmp_path / "outputs" / "twice", Console()
    journal = written(run)
    follower = follow(run, server.uri, console)
    wait_until(lambda: any(entry["offset"] for entry in delivered(run).values()))
    client, tracked = mlflow_run(server.uri)
    client.create_run(place, tags={"journal.id": tracked.data.tags["journal.id"]})
    journal.write("end", "end", "FINISHED", 128)
    assert follower.close(60), console
    journal.close()
    twin, whole = sorted(client.search_runs([place]), key=lambda one: len(one.data.metrics))
    assert (twin.info.status, whole.info.status) == ("RUNNING", "FINISHED")
    assert (twin.data.metrics, whole.data.metrics) == ({}, {"loss": 0.5})
    become(monkeypatch, "somebody", SOMEBODY)
    client.delete_run(twin.info.run_id)
    assert mlflow_run(server.uri)[1].info.run_id == whole.info.run_id


def test_it_is_healthy_while_its_database_answers(server, database: Postgres):
    assert server.is_healthy()
    database.stop()
    assert not server.is_healthy()
    database.start()
    assert server.is_healthy()
