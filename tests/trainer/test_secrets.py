"""Credentials come from the environment, reach MLflow, and stand in no file and on no screen."""

import base64
import os
import stat
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.helpers.command_lines import mistake, script, tiny
from trainer.recipe.loading import load_saved
from trainer.tracking.__main__ import main
from trainer.tracking.journal import read

USER, PASSWORD = "someone-7f3a", "s3cr3t-91bd"
SECRETS = {
    "MLFLOW_TRACKING_USERNAME": USER,
    "MLFLOW_TRACKING_PASSWORD": PASSWORD,
    "AWS_SECRET_ACCESS_KEY": "aws-40c2e8",
    "A_VARIABLE_OF_MINE": "mine-5d77b1",
}
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode())
DEAD = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def secrets_in(text: str | bytes) -> list[str]:
    """The secrets in a text."""
    text = text.encode() if isinstance(text, str) else text
    return [value for value in [*SECRETS.values(), BASIC.decode()] if value.encode() in text]


def files_with_secrets(folder: Path) -> dict[str, list[str]]:
    """The files of a folder with a secret in their names or bytes."""
    files = {
        path: secrets_in(str(path)) + secrets_in(path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert files
    return {str(path): secrets for path, secrets in files.items() if secrets}


@contextmanager
def closed_door():
    """A server that lets nobody in; its address, and the credentials that it was shown."""
    shown = []

    class Door(BaseHTTPRequestHandler):
        def do_GET(self):
            shown.append(self.headers.get("Authorization"))
            body = b"go away"
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            """Nothing: this is no test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", shown
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
def test_credentials_reach_mlflow_and_nothing_else(capsys, digits, tmp_path):
    outputs = tmp_path / "outputs"
    before = os.umask(0o027)
    try:
        with closed_door() as (address, shown):
            done = script(capsys, *tiny(outputs, digits.root, f"tracking.uri={address}"))
    finally:
        os.umask(before)
    assert done.status == 0, done.err
    assert set(shown) == {f"Basic {BASIC.decode()}"}
    assert "no tracking since" in done.out + done.err
    assert secrets_in(done.out + done.err) == []
    assert files_with_secrets(tmp_path) == {}
    for path in outputs.rglob("*"):  # all that a run makes is as open as its user wants files to be
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path


def test_a_resumed_run_and_sync_know_the_address(capsys, digits, tmp_path):
    outputs = tmp_path / "outputs"
    for images in (128, 256):
        done = script(capsys, *tiny(outputs, digits.root, f"images={images}", f"tracking.uri={DEAD}"))
        assert done.status == 0, done.err
        assert secrets_in(done.out + done.err) == []
    run = outputs / "quickstart"
    assert [record["kind"] for record, _ in read(run / "journal.jsonl")].count("resumed") == 1
    assert load_saved(run / "recipe.yaml").recipe.tracking.uri == DEAD
    assert main(["sync", str(outputs)]) == 1
    out, err = capsys.readouterr()
    assert DEAD in out
    assert secrets_in(out + err) == []
    assert files_with_secrets(tmp_path) == {}


@pytest.mark.parametrize(
    "uri",
    [
        f"http://{USER}:{PASSWORD}@127.0.0.1:9",
        f"HTTPS://{PASSWORD}@host",
        f"http://{USER}:{PASSWORD}/x@host",
        f"{USER}:{PASSWORD}@host:5000",
        f"postgresql://{USER}:{PASSWORD}@host/db",
        f"http://host:5000/?token={PASSWORD}",
    ],
)
def test_an_address_with_a_password_is_refused_and_not_repeated(capsys, digits, tmp_path, uri):
    outputs = tmp_path / "outputs"
    (tmp_path / "private.yaml").write_text(f"base: quickstart\ntracking: {{uri: '{uri}'}}\n")
    for arguments in (
        tiny(outputs, digits.root, f"tracking.uri={uri}"),
        [f"recipe={tmp_path / 'private.yaml'}", f"outputs={outputs}"],
        ["recipe=quickstart", f"tracking.uri={uri}", "--print"],
        ["recipe=evaluate", f"from={outputs}", f"tracking.uri={uri}"],
    ):
        done = script(capsys, *arguments)
        assert "MLFLOW_TRACKING_PASSWORD" in mistake(done)
        assert secrets_in(done.out + done.err) == []
    assert not outputs.exists()
    (outputs / "run").mkdir(parents=True)
    (outputs / "run" / "journal.jsonl").touch()
    assert main(["sync", str(outputs), "--uri", uri]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: tracking.uri: ")
    assert (err.count("\n"), secrets_in(out + err)) == (1, [])


def test_a_command_with_a_password_is_refused_and_not_repeated(capsys, tmp_path):
    root = f"pipe:curl -u {USER}:{PASSWORD} https://host/{{}}"
    (tmp_path / "private.yaml").write_text(f"base: quickstart\ndata: {{root: '{root}'}}\n")
    for arguments in (
        ["recipe=quickstart", f"data.root='{root}'", "--allow-commands"],
        [f"recipe={tmp_path / 'private.yaml'}", "--print"],
    ):
        done = script(capsys, *arguments, f"outputs={tmp_path / 'outputs'}")
        assert "~/.netrc" in mistake(done)
        assert secrets_in(done.out + done.err) == []
    assert not (tmp_path / "outputs").exists()


def test_a_saved_recipe_with_a_password_is_named(capsys, digits, tmp_path):
    """As an older version left it: it is for its owner to take the password out."""
    arguments = tiny(tmp_path / "outputs", digits.root, "images=128")
    assert script(capsys, *arguments).status == 0
    saved = tmp_path / "outputs" / "quickstart" / "recipe.yaml"
    clean = saved.read_text()
    saved.write_text(clean.replace("uri: none", f"uri: http://{USER}:{PASSWORD}@host"))
    done = script(capsys, *arguments, "run=quickstart", "images=256")
    assert "recipe.yaml, line" in mistake(done)
    assert "tracking.uri" in done.err
    assert secrets_in(done.out + done.err) == []
    saved.write_text(clean)
    assert script(capsys, *arguments, "images=256").status == 0


@pytest.mark.slow
def test_the_store_holds_no_secret(capsys, digits, tmp_path):
    arguments = tiny(tmp_path / "outputs", digits.root, "evaluate.at_end=true", "tracking.uri=null")
    done = script(capsys, *arguments, "evaluate.controls=false", "evaluate.linear=null", "evaluate.mlp=null")
    assert done.status == 0, done.err
    assert "no tracking since" not in done.out + done.err
    assert (tmp_path / "outputs" / "mlflow.db").stat().st_size > 100_000
    assert list((tmp_path / "outputs" / "mlartifacts").rglob("encoder.safetensors"))
    assert secrets_in(done.out + done.err) == []
    assert files_with_secrets(tmp_path) == {}
