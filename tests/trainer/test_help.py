"""--help of every door: one style, one order, and no waiting for torch."""

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
# Prints which of the heavy packages a command has imported when it leaves, below its own output.
SPY = """
import atexit, runpy, sys
def report():
    heavy = {"torch", "accelerate", "mlflow", "deepspeed", "nvidia"}
    print(f"heavy: {sorted(heavy & set(sys.modules))}")
atexit.register(report)
import os
os._exit = sys.exit  # launch.leave
sys.argv = sys.argv[1:]
run, words = (runpy.run_module, sys.argv[1:]) if sys.argv[0] == "-m" else (runpy.run_path, sys.argv)
sys.argv = words
run(words[0], run_name="__main__")
"""


@pytest.mark.parametrize("words", PAGES, ids=lambda words: " ".join(Path(word).name for word in words))
def test_help_is_in_one_style(words):
    done = process(sys.executable, "-c", SPY, *words, "--help")
    assert (done.status, done.err) == (0, "")
    text, _, heavy = done.out.rpartition("heavy: ")
    assert heavy == "[]\n"
    assert process(sys.executable, *words, "-h") == (0, text, "")
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert [line for line in lines if line.endswith(":") and line[0] != " "] == TITLES
    page = dict(zip(["summary", *TITLES], re.split("\n\n[a-z ]+:\n", text), strict=True))
    assert re.fullmatch("[A-Z].*[.]", page["summary"], re.DOTALL), "it begins with what the command does"
    for title in TITLES:
        for line in page[title].strip("\n").splitlines():
            assert line.startswith("  "), line
    known = {int(number) for number in re.findall(r"^  (\d+) ", page["exit status:"], re.MULTILINE)}
    assert {0, 2} <= known <= {0, 1, 2, 130}
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
