"""Folders that may not be entered, and paths that cannot be: one line at every door."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from data_pipelines.shards.__main__ import main as shards
from tests.helpers.command_lines import Done, process, script, tiny
from trainer.checkpoints.__main__ import main as checkpoints
from trainer.tracking.__main__ import main as tracking

DOORS = {
    "checkpoints list": (checkpoints, ["list", "{}"]),
    "checkpoints verify": (checkpoints, ["verify", "{}"]),
    "checkpoints prune": (checkpoints, ["prune", "{}", "--keep", "1"]),
    "tracking sync": (tracking, ["sync", "{}"]),
    "shards verify": (shards, ["verify", "{}"]),
    "shards to": (shards, ["source=digits", "to={}"]),
    "shards from": (shards, ["source=folder", "from={}", "to=new"]),
}
WORDS = {
    "outputs": ["outputs={}"],
    "data.root": ["data.root={}"],
    "cache": ["data.root=http://127.0.0.1:9", "data.cache={}", "data.retry_seconds=0"],
}


@pytest.fixture
def paths(tmp_path, monkeypatch) -> dict[str, Path]:
    """Paths that nothing can be at."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    return {
        "long": tmp_path / ("n" * 256),
        "file": tmp_path / "file" / "below",
        "loop": tmp_path / "loop" / "below",
        "deep": tmp_path.joinpath(*["n" * 200] * 21),  # beyond 4,095 bytes
    }


def one_line(done: Done) -> str:
    assert done.status == 2, done
    errors = [line for line in done.err.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1, done.err
    assert errors[0].startswith("error: ")
    return errors[0]


@pytest.mark.parametrize("door", DOORS)
def test_what_reads_a_folder_says_in_one_line_that_it_cannot(capsys, paths, door):
    main, words = DOORS[door]
    for path in paths.values():
        capsys.readouterr()
        status = main([word.format(path) for word in words])
        line = one_line(Done(status, *capsys.readouterr()))
        assert str(path)[:60] in line


@pytest.mark.parametrize("key", WORDS)
def test_a_run_says_in_one_line_that_it_cannot(capsys, digits, tmp_path, paths, key):
    for path in paths.values():
        words = [word.format(path) for word in WORDS[key]]
        line = one_line(script(capsys, *tiny(tmp_path / "outputs", digits.root), *words))
        assert key == "cache" or str(path)[:60] in line
        assert not (tmp_path / "outputs").exists()


def test_an_evaluation_says_in_one_line_that_it_cannot(capsys, paths):
    for path in paths.values():
        assert str(path)[:60] in one_line(script(capsys, "recipe=evaluate", f"from={path}"))


PROGRAM = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from tests.trainer.test_closed_paths import DOORS
from trainer.exports.torchvision_resnet import main as import_weights
from trainer.main import exit_status, main
path, above, results = sys.argv[1], sys.argv[2], {}
doors = {name: (door, [word.format(path) for word in words]) for name, (door, words) in DOORS.items()}
doors["list of the folder above"] = (DOORS["checkpoints list"][0], ["list", above])
doors["sync of the folder above"] = (DOORS["tracking sync"][0], ["sync", above])
doors["list of closed checkpoints"] = (DOORS["checkpoints list"][0], ["list", f"{above}/begun"])
doors["train with closed checkpoints"] = (main, [*sys.argv[3:], f"outputs={above}", "run=begun"])
doors["plan"] = (main, ["recipe=quickstart", f"outputs={path}", "--plan"])
doors["train"] = (main, ["recipe=quickstart", f"outputs={path}", "tracking.uri=none"])
doors["data"] = (main, ["recipe=quickstart", f"data.root={path}", "outputs=new", "tracking.uri=none"])
doors["evaluate"] = (main, ["recipe=evaluate", f"from={path}"])
doors["recipe"] = (main, [f"recipe={path}.yaml"])
doors["import from"] = (import_weights, [f"from={path}", "to=x.safetensors"])
for name, (door, words) in doors.items():
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = exit_status(lambda: door(words))
    results[name] = [status, out.getvalue(), err.getvalue()]
print(json.dumps(results))
"""


def test_a_folder_that_may_not_be_entered_is_one_line_at_every_door(digits, tmp_path):
    closed, begun = tmp_path / "closed", tmp_path / "begun" / "checkpoints"
    (closed / "run").mkdir(parents=True)
    (begun / "images-000000000128").mkdir(parents=True)
    closed.chmod(0)
    begun.chmod(0)
    as_others = []
    if os.geteuid() == 0:  # whom no mode keeps out but for what is given up here
        if not shutil.which("setpriv"):
            pytest.skip("needs setpriv of util-linux")
        as_others = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    root = str(Path(__file__).parents[2])
    variables = {"PYTHONPATH": root, "ACCELERATE_USE_CPU": "true"}
    words = [closed / "run", tmp_path, *tiny(tmp_path, digits.root)]
    done = process(*as_others, sys.executable, "-c", PROGRAM, *words, cwd=tmp_path, **variables)
    closed.chmod(0o700)
    begun.chmod(0o700)
    assert done.status == 0, done.err
    results = json.loads(done.out.splitlines()[-1])
    assert results.pop("plan")[0] == 0  # it reads no outputs
    for name, result in results.items():
        line = one_line(Done(*result))
        assert str(closed) in line or str(begun) in line, name
