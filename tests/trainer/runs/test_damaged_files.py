"""Each file that a run keeps, damaged in each way: a door goes on rightly or says so in one line."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.command_lines import Done, script, tiny
from trainer.checkpoints.__main__ import main as checkpoints
from trainer.evaluation.figures import charts
from trainer.evaluation.measure import Measured
from trainer.tasks import evaluate, pretrain, training_run
from trainer.tracking.__main__ import main as tracking

NOWHERE = "http://127.0.0.1:9"  # where no MLflow answers
NEWEST = "checkpoints/images-000000000256"
DELIVERED = '{"http://127.0.0.1:9": {"journal": "none", "run_id": "1", "offset": 5, "aside": []}}'
WAYS = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\xff\xfe\x00garbage\x00\n\x80" * 9),
    "list": lambda path: path.write_text("[]\n"),
    "null": lambda path: path.write_text("null\n"),
    "nested": lambda path: path.write_text("[" * 3_000),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}
FIVE = ("empty", "garbage", "list", "half", "folder")
PART = f"{NEWEST}/part-00000-of-00001.safetensors"
CASES = [
    *((file, "garbage") for file in ("checkpoints", "figures", "export", NEWEST)),
    *(
        (file, "folder") for file in ("stopped", "failed", "stop", "world.json", ".delivered.lock")
    ),  # written only
    *((file, way) for file in ("results.json", "delivered.json", f"{NEWEST}/manifest.json") for way in WAYS),
    *((file, way) for file in ("journal.jsonl", "done", "recipe.yaml", PART) for way in FIVE),
    ("journal.jsonl", "nested"),
]


EVERY = ("finished", "evaluate", "list", "verify", "sync", "prune", "continued")
READERS = {
    **dict.fromkeys(("stopped", "failed", "stop", "world.json"), ("continued",)),
    **dict.fromkeys((".delivered.lock", "delivered.json"), ("sync",)),
    **dict.fromkeys(("results.json", "figures", "export"), ("finished", "evaluate", "continued")),
    "done": ("finished", "continued"),
    "journal.jsonl": ("evaluate", "sync", "prune", "continued"),
}


@pytest.fixture(scope="module")
def outputs(digits, tmp_path_factory, request) -> Path:
    """A finished run in a folder of outputs, with every file that some run may have."""
    folder = tmp_path_factory.mktemp("damaged") / "outputs"
    capture = request.getfixturevalue("capture")
    assert script(capture, *tiny(folder, digits.root)).status == 0
    run = folder / "quickstart"
    (run / "delivered.json").write_text(DELIVERED)
    for name in ("stopped", "failed", "stop", ".delivered.lock"):
        (run / name).write_text("256\nwhy\n")
    (run / "results.json").write_text('{"knn/y": 0.5}\n')
    return folder


@pytest.fixture(scope="module")
def capture():
    """What `script` wants of capsys, for a fixture of the module."""
    return SimpleNamespace(readouterr=lambda: ("", ""))


@pytest.fixture
def at_once(monkeypatch):
    """What lies between the reading of a run's files and the writing of new ones takes no time."""
    monkeypatch.setattr(pretrain, "build_trainer", lambda *_, **__: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(training_run, "train_to_the_end", lambda *them: them[2].end("FINISHED"))
    monkeypatch.setattr(evaluate, "evaluate_objective", lambda *_: Measured({"knn/y": 0.25}, {}, False))
    monkeypatch.setattr(charts, "accuracies", lambda *_: None)


def doors(capsys, outputs: Path, root: Path, file: str):
    """Every door that reads a file of a run, and how it ended: (name, Done)."""
    run, readers = outputs / "quickstart", READERS.get(file, EVERY)
    if "finished" in readers:
        yield "finished", script(capsys, *tiny(outputs, root))
    if "evaluate" in readers:
        yield "evaluate", script(capsys, "recipe=evaluate", f"from={run}", "tracking.uri=none")
    for name, main, words in (
        ("list", checkpoints, ["list", str(run)]),
        ("verify", checkpoints, ["verify", str(run)]),
        ("sync", tracking, ["sync", str(outputs), "--uri", NOWHERE]),
        ("prune", checkpoints, ["prune", str(run)]),
    ):
        if name in readers:
            capsys.readouterr()
            status = main(words)
            yield name, Done(status, *capsys.readouterr())
    if "continued" in readers:
        if (run / "done").is_file():
            (run / "done").unlink()
        yield "continued", script(capsys, *tiny(outputs, root))


@pytest.mark.parametrize(("file", "way"), CASES)
def test_a_damaged_file_of_a_run_is_no_traceback(capsys, digits, outputs, tmp_path, at_once, file, way):
    copy = tmp_path / "outputs"
    shutil.copytree(outputs, copy)
    path = copy / "quickstart" / file
    if path.is_dir():
        shutil.rmtree(path)
    WAYS[way](path)
    for name, done in doors(capsys, copy, digits.root, file):
        assert "Traceback" not in done.out + done.err, name
        errors = [line for line in done.err.splitlines() if not line.startswith("warning: ")]
        assert len(errors) == (done.status == 2), (name, done)
        if errors:
            assert errors[0].startswith("error: ")
            assert str(path) in errors[0] or "quickstart" in errors[0], name
