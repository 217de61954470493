"""The commands that a run prints: as they were typed, for a shell, and none where none would work."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.command_lines import MAIN, ROOT, tiny
from trainer.recipe import loading
from trainer.recipe.schema import Data
from trainer.runs.folder import RunFolder
from trainer.tasks import commands

FOLDER = RunFolder(Path("outputs/it's a run"))


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    for name in ("SLURM_JOB_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(commands, "started_by", lambda: None)


@pytest.mark.parametrize(
    ("called", "here", "expected"),
    [
        ("trainer/main.py", ROOT, "accelerate launch trainer/main.py"),
        ("trainer/main.py", ROOT / "trainer", "accelerate launch main.py"),
        (str(MAIN), Path("/"), f"accelerate launch {str(MAIN)[1:]}"),
        ("/usr/bin/hybrid-infomax", ROOT, "hybrid-infomax train"),
    ],
)
def test_the_entry_as_it_was_called(monkeypatch, called, here, expected):
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "argv", [called, "recipe=quickstart"])
    assert commands.entry() == expected


def test_the_entry_of_another_folder_and_of_an_installed_copy(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(MAIN)])
    assert commands.entry() == f"accelerate launch {MAIN}"
    monkeypatch.setattr(loading, "RECIPES", loading.INSTALLED)
    assert commands.entry() == "accelerate launch -m trainer.main"


def test_paths_are_words_of_a_shell_and_values_of_yaml(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/hybrid-infomax"])
    words = shlex.split(commands.evaluate(FOLDER))
    assert words[:-1] == ["hybrid-infomax", "train", "recipe=evaluate"]
    loaded = loading.load(words[2:])
    assert loaded.recipe.folder("evaluate") == FOLDER.path
    assert str(FOLDER.encoder) in commands.load_encoder(FOLDER)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trainer/main.py", "recipe=a", "data.size=8"], "python trainer/main.py recipe=a data.size=8"),
        (["/x/bin/hybrid-infomax", "train", "a={b: 1}"], "hybrid-infomax train 'a={b: 1}'"),
    ],
)
def test_the_command_without_a_launcher(monkeypatch, words, expected):
    monkeypatch.setattr(sys, "argv", words)
    assert commands.continuation() == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/x/python3", "/x/bin/accelerate", "launch", "m.py", "a=b c"], "accelerate launch m.py 'a=b c'"),
        (["/x/python3", "/x/bin/torchrun", "m.py"], "torchrun m.py"),
        (
            ["/x/python3", "-m", "accelerate.commands.launch", "m.py"],
            "python -m accelerate.commands.launch m.py",
        ),
    ],
)
def test_the_command_of_a_launcher(monkeypatch, words, expected):
    class Launcher:
        def cmdline(self) -> list[str]:
            return words

    monkeypatch.setattr(commands, "started_by", Launcher)
    assert commands.continuation() == expected


def test_a_job_of_slurm_or_of_several_machines_is_continued_by_its_script(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_JOB_ID", "7")
        assert commands.continuation() == ""
    ranks = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (ranks | {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    assert commands.continuation() == ""


def test_labels_are_known_where_the_data_set_lies_here(tmp_path):
    data = Data(source="digits", root=str(tmp_path))
    assert commands.has_labels(data)  # nothing is known
    for text, expected in (('{"classes": []}', False), ('{"classes": ["a"]}', True), ("{", True)):
        (tmp_path / "dataset.json").write_text(text)
        assert commands.has_labels(data) == expected
    assert commands.has_labels(Data(source="digits", root="https://host/data"))


@pytest.mark.slow
def test_a_stopped_run_prints_the_command_that_started_it(digits, tmp_path):
    outputs = tmp_path / "out puts"
    words = tiny(outputs, digits.root, "images=12800", "save.every=12800")
    stop = outputs / "quickstart" / "stop"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "SLURM_"))}
    bin_folder = str(Path(sys.executable).parent)
    environment |= {"OMP_NUM_THREADS": "1", "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    run = subprocess.Popen(
        ["accelerate", "launch", "trainer/main.py", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not (stop.parent / "checkpoints").is_dir() and run.poll() is None:
        time.sleep(0.1)
        if (stop.parent / "recipe.yaml").exists():
            stop.touch()
    out, _ = run.communicate(timeout=120)
    (line,) = [text for text in out.splitlines() if text.startswith("the same command continues it: ")]
    command = line.removeprefix("the same command continues it: ")
    assert shlex.split(command) == ["accelerate", "launch", "trainer/main.py", *words]
