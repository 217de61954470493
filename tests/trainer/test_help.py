"""--help of every door: one style, one order, and no waiting for torch."""

import json
import re
import sys
from pathlib import Path

import pytest

from data_pipelines.common.arguments import WIDTH, help_page
from tests.helpers.command_lines import MAIN, process
from trainer import cli

MODULES = {
    "data_pipelines.shards": ("verify",),
    "trainer.checkpoints": ("list", "verify", "prune"),
    "trainer.tracking": ("sync",),
    "trainer.report": (),
    "trainer.exports.torchvision_resnet": (),
    "trainer.main": (),
}
PAGES = [
    [str(MAIN)],
    ["-m", "trainer.cli"],
    *(["-m", "trainer.cli", door] for door in cli.DOORS),
    *(
        ["-m", module, *words]
        for module, names in MODULES.items()
        for words in ((), *zip(names, strict=True))
    ),
]
TITLES = ["usage:", "arguments:", "examples:", "exit status:"]
# Runs a command with --help and -h; prints what it printed, its statuses, and the heavy packages it imported.
SPY = """
import contextlib, io, json, os, runpy, sys
os._exit = sys.exit  # launch.leave
words, texts, statuses = sys.argv[1:], [], []
for flag in ("--help", "-h"):
    module = words[0] == "-m"
    sys.argv = [*words[module:], flag]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            (runpy.run_module if module else runpy.run_path)(words[module], run_name="__main__")
        except SystemExit as left:
            statuses.append(left.code)
    texts.append(out.getvalue())
heavy = sorted({"torch", "accelerate", "mlflow", "deepspeed", "nvidia"} & set(sys.modules))
print(json.dumps([texts, statuses, heavy]))
"""


@pytest.mark.parametrize("words", PAGES, ids=lambda words: " ".join(Path(word).name for word in words))
def test_help_is_in_one_style(words):
    done = process(sys.executable, "-c", SPY, *words)
    assert (done.status, done.err) == (0, "")
    (text, short), statuses, heavy = json.loads(done.out)
    assert (short, statuses, heavy) == (text, [0, 0], [])
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert [line for line in lines if line.endswith(":") and line[0] != " "] == TITLES
    page = dict(zip(["summary", *TITLES], re.split("\n\n[a-z ]+:\n", text), strict=True))
    assert re.fullmatch("[A-Z].*[.]", page["summary"], re.DOTALL), "it begins with what the command does"
    for title in TITLES:
        for line in page[title].strip("\n").splitlines():
            assert line.startswith("  "), line
    known = {int(number) for number in re.findall(r"^  (\d+) ", page["exit status:"], re.MULTILINE)}
    assert {0, 2} <= known <= {0, 1, 2, 130, 143}
    commands = [line.split("     (")[0].strip() for line in page["examples:"].splitlines()]
    assert commands[0].startswith(("accelerate launch", "hybrid-infomax", "python -m"))


@pytest.mark.parametrize("words", [["list"], ["prune"], ["verify"]], ids=" ".join)
def test_help_of_a_command_names_its_own_words(words):
    done = process(sys.executable, "-m", "trainer.checkpoints", *words, "--help")
    assert f"python -m trainer.checkpoints {words[0]} DIR" in done.out
    assert ("--keep-every M" in done.out) == (words == ["prune"])


def test_a_page_wraps_its_texts_and_keeps_command_lines():
    words = "word " * 40
    page = help_page(f"A summary. {words}", ["a command"], {"KEY": words}, ["an example"], {0: "done"})
    lines = page.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert page.count("word") == 80
    assert [line for line in lines if line.startswith("  KEY  word")] != []
    assert "  an example" in lines
    assert lines[-2:] == ["exit status:", "  0  done"]
