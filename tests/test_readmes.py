"""The READMEs: links lead somewhere, commands are of today, and each one runs or says what it needs."""

import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.helpers.command_lines import Done, process, script, tiny
from tests.helpers.kept_files import kept_files
from tests.helpers.readme_checks import (
    Repository,
    command_problems,
    in_sentences,
    link_problems,
    path_problems,
)
from tests.helpers.readme_runners import LIGHT, QUESTIONS, runner, steps_of_ci
from tests.helpers.readmes import Command, Page, name
from tests.helpers.tiny_dataset import pictures, png
from trainer import cli
from trainer.recipe.loading import load

FILES = kept_files()
REPOSITORY = Repository(FILES)
PAGES = [Page(path) for path in FILES if path.suffix == ".md"]
COMMANDS = [command for page in PAGES for command in page.commands]
SNIPPETS = [(page, block) for page in PAGES for block in page.blocks if block.is_python]


STEPS = steps_of_ci()
RUNNERS = {str(command): runner(command, STEPS) for command in COMMANDS}


def those(kind: str) -> list[Command]:
    """The commands of a kind, each once, in the order of the pages."""
    unique: dict[str, Command] = {}
    for command in COMMANDS:
        if RUNNERS[str(command)] == kind:
            unique.setdefault(command.text, command)
    return list(unique.values())


# ---- what holds of the text ------------------------------------------------------------------------


def test_the_pages_are_read():
    names = {name(page.path) for page in PAGES}
    assert {"README.md", "trainer/README.md", "data_pipelines/README.md", "slurm/README.md"} <= names
    assert {"pytest", "pip", "accelerate", "sbatch", "docker"} <= {
        words[0] for command in COMMANDS for words in command.parts
    }
    assert len(SNIPPETS) >= 3
    assert ["accelerate", "launch", "trainer/main.py", "recipe=quickstart"] in STEPS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: name(page.path))
def test_links_and_paths_lead_somewhere(page):
    assert not link_problems(page, REPOSITORY)
    assert not path_problems(page, REPOSITORY)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: name(page.path))
def test_commands_are_of_today(page):
    commands = [*page.commands, *in_sentences(page)]
    assert not [problem for command in commands for problem in command_problems(command, REPOSITORY)]


def test_every_command_runs_or_says_what_it_needs():
    unseen = [f"{command}: {command.text}" for command in COMMANDS if RUNNERS[str(command)] is None]
    assert not unseen, "\n".join(["neither run by a test nor marked `# needs …`:", *unseen])


DEFECTS = {
    "[gone](trainer/gone.md)": "trainer/gone.md: no file",
    "[gone](#nowhere)": "#nowhere: no heading",
    "[gone](README.md#nowhere)": "README.md#nowhere: no heading",
    "# A\n\n# A\n\n[second](#a-2)": "#a-2: no heading",
    "![gone](gone.png)": "gone.png: no file",
    '<img src="gone.svg">': "gone.svg: no file",
    "[bad](http://)": "http://: no address",
    "    # Not a heading\n\n[code](#not-a-heading)": "#not-a-heading: no heading",
    "`trainer/gone.py` is": "trainer/gone.py",
    "`tests/gone/` is": "tests/gone/",
    "    accelerate launch trainer/main.py recipe=dim_local optimiser.lr=1": "optimizer",
    "    accelerate launch trainer/main.py recipe=dim_locl     # needs a GPU": "dim_local",
    "    accelerate launch --proceses 2 trainer/main.py recipe=dim_local": "--proceses",
    "    accelerate launch --config_file recipes/launch/zero9.yaml trainer/main.py recipe=dim_local": "zero9",
    "    ENGINE=zero9 sbatch slurm/hybrid_imagenet.sh  # needs Slurm": "zero9",
    "    sbatch slurm/dim_local.sh optimiser.lr=1  # needs Slurm": "optimizer",
    "    python -m data_pipelines.shards source=cifar11 to=x": "cifar11",
    "    python -m data_pipelines.shards sorce=digits to=x": "source",
    "    python -m trainer.checkpoints prune x --keeep 1": "--keeep",
    "    python -m trainer.gone": "trainer.gone",
    "    python benchmarks/loader.py --imagse 3": "--imagse",
    "    hybrid-infomax lst": "list",
    "    bash benchmarks/gone.sh": "gone.sh",
    "As in `python trainer/main.py recipe=dim_locl`": "dim_local",
}


@pytest.mark.parametrize(("text", "problem"), DEFECTS.items(), ids=range(len(DEFECTS)))
def test_a_defect_is_noticed(tmp_path, text, problem):
    (tmp_path / "README.md").write_text(f"# Page\n\n{text}\n", encoding="utf-8")
    page, pages = Page(tmp_path / "README.md"), Repository([*FILES, tmp_path / "README.md"])
    problems = link_problems(page, pages) + path_problems(page, pages)
    for command in [*page.commands, *in_sentences(page)]:
        problems += command_problems(command, pages)
    assert len(problems) == 1
    assert problem in problems[0]


def test_a_command_that_neither_runs_nor_says_what_it_needs_is_noticed(tmp_path):
    text = (
        "    bash a.sh\n    # needs root\n    bash a.sh\n    bash b.sh   # needs it\n\n    bash a.sh  # why\n"
    )
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    runners = [runner(command, STEPS) for command in Page(tmp_path / "README.md").commands]
    assert runners == [None, "needs", "needs", None]


# ---- commands that run -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(digits, tmp_path_factory) -> Path:
    """A copy of the repository, with data, photographs and two finished runs."""
    root = tmp_path_factory.mktemp("checkout")
    for file in FILES:
        (root / name(file)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / name(file))
    shutil.copytree(digits.root, root / "data" / "digits")
    done = process(sys.executable, "trainer/main.py", *tiny(Path("outputs"), Path("data/digits")), cwd=root)
    assert done.status == 0, done.err
    shutil.copytree(root / "outputs" / "quickstart", root / "outputs" / "RUN")
    for number, picture in enumerate(pictures(24, 72, 80)):
        file = root / "photos" / f"class{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(picture))
    (root / "laion").mkdir()
    subprocess.run(["tar", "-cf", root / "laion/0.tar", "-C", root / "photos/class0", "."], check=True)
    return root


@pytest.mark.parametrize("command", those("here"), ids=str)
def test_a_command_runs_as_printed(command, checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    for words in command.parts:
        done = run_here([part for word in words for part in expanded(word, command.text, checkout)], capsys)
        assert done.status == 0, done
        assert done.out or words[0] == "touch"


def expanded(word: str, text: str, folder: Path) -> list[str]:
    """What a shell makes of a word: the files of a pattern that stands in no quotes."""
    if "*" not in word or f"'{word}'" in text or f"'{word.partition('=')[2]}'" in text:
        return [word]
    return sorted(str(path.relative_to(folder)) for path in folder.glob(word)) or [word]


def run_here(words: list[str], capsys) -> Done:
    """One command in this process, as its program would run it."""
    if words[:2] == ["python", "trainer/main.py"]:
        return script(capsys, *words[2:])
    if words[0] in LIGHT:
        return process(*words, cwd=Path.cwd())
    if words[0] == "hybrid-infomax":
        return outcome(cli.run, words[1:], capsys)
    return outcome(importlib.import_module(f"{words[2]}.__main__").main, words[3:], capsys)


def outcome(main, words: list[str], capsys) -> Done:
    capsys.readouterr()
    try:
        status = main(words)
    except SystemExit as left:
        status = left.code or 0
    return Done(status, *capsys.readouterr())


@pytest.fixture(scope="module")
def serve(checkout):
    """Starts a server in the checkout and waits for its answer; it is there until the last test."""
    servers = []

    def serve(command: str, port: str) -> None:
        with open(checkout / "server.log", "a") as log:
            words = ["bash", "-c", f"exec {command}"]
            options = {"cwd": checkout, "stdout": log, "stderr": log, "start_new_session": True}
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            servers.append(subprocess.Popen(words, env=os.environ | {"PATH": path}, **options))
        end = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}"):
            assert servers[-1].poll() is None, (checkout / "server.log").read_text()
            assert time.monotonic() < end, (checkout / "server.log").read_text()
            time.sleep(0.2)

    yield serve
    for server in servers:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=10).status == 200
    except OSError:
        return False


@cache
def port_of(_name: str) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("command", those("process"), ids=str)
def test_a_command_runs_in_a_shell(command, checkout, serve):
    """As printed, but for ports, which are free ones, a server's workers, which are one, and trainings, which
    are shortened to one batch."""
    words = command.parts[-1]
    text = command.text.replace("8000", port_of("web"))
    if words[:2] == ["mlflow", "ui"]:
        serve(f"{text} --workers 1 --port {port_of('mlflow')}", port_of("mlflow"))
        return
    if text.endswith("&"):
        serve(text.removesuffix("&"), port_of("web"))
        return
    recipe = [word for word in words if re.match(r"[a-z][\w.]*=", word)]
    if not QUESTIONS & set(words) and any(word.startswith("recipe=") for word in recipe):
        text += f" images={load(recipe).recipe.batch}"
        text += " evaluate.at_end=false evaluate.every=0 tracking.uri=none"
    done = process("bash", "-c", text, cwd=checkout)
    assert done.status == 0, done


@pytest.mark.parametrize(("page", "block"), SNIPPETS, ids=lambda part: getattr(part, "first", None))
def test_a_snippet_runs_and_prints_what_its_comment_says(page, block, checkout, monkeypatch, capsys):
    """`images` is a batch for the encoder of the small run."""
    monkeypatch.chdir(checkout)
    capsys.readouterr()
    exec(compile(block.text, name(page.path), "exec"), {"images": torch.rand(4, 3, 16, 16) * 2 - 1})
    printed = re.findall(r"^print\(.*\) +# (.*)$", block.text, re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == printed
