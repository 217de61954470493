"""How a command of a page is seen to work: by .ci/run, by a test, or not, since it needs what no test has."""

import re
import shlex

from tests.helpers import ROOT
from tests.helpers.readmes import Command

LIGHT = {"touch", "tail", "head", "cat", "ls", "mkdir", "echo"}
MODULES = {"trainer.checkpoints", "trainer.report", "data_pipelines.shards"}
QUESTIONS = {"--list", "--print", "--plan", "--folder", "--help"}
FAST = "not slow"
SUITES = {FAST: {FAST}, "slow": {"slow"}, "slow or not slow": {FAST, "slow"}}  # words of `-m` -> what CI runs
DOORS = (
    ["accelerate", "launch"],
    ["mlflow", "ui"],
    ["hybrid-infomax", "train"],
    ["hybrid-infomax", "tracking"],
)


def steps_of_ci() -> list[list[str]]:
    """The commands of .ci/run, without what only makes them quieter."""
    steps = []
    for line in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a text of several lines
            continue
        words = words[2:] if words[:1] == ["timed"] else words
        if words:
            steps.append(plain([words[0].rpartition("/")[2], *words[1:]]))
    return steps


def plain(words: list[str]) -> list[str]:
    """Without what decides how much is printed, on how many processes, whether files are mended; without `.`
    and `.[test]`, which installs more than `.` does."""
    if "-n" in words:
        words = words[: words.index("-n")] + words[words.index("-n") + 2 :]
    quiet = {"-q", "-qq", "--disable-pip-version-check", "--check"}
    return [word for word in words if word not in quiet and not re.fullmatch(r"\.(\[\w+\])?", word)]


def in_ci(words: list[str], steps: list[list[str]]) -> bool:
    """Whether .ci/run does the same, or the same and more."""
    if words[-1].endswith(".ci/run"):
        return True
    if words[0] == "pytest":  # both suites run, so any part of them
        run = {marker(step) for step in steps if "pytest" in step}
        return SUITES.get(marker(words), {marker(words)}) <= run
    return plain(words) in steps


def marker(words: list[str]) -> str:
    """What a command of pytest says behind `-m`; by default what pyproject.toml says, but for its nights."""
    options = words[words.index("pytest") + 1 :]
    return options[options.index("-m") + 1] if "-m" in options else FAST


def runner(command: Command, steps: list[list[str]]) -> str | None:
    """What runs a command.

    Returns:
        "needs": nothing, since it needs what its comment names; "ci"; "here": a test, in its process and at
        once; "process": a slow test, in a shell; None: nothing.
    """
    if command.needs:
        return "needs"
    if all(in_ci(words, steps) for words in command.parts):
        return "ci"
    ways = {way(words) for words in command.parts}
    if None in ways:
        return None
    return "here" if ways == {"here"} and not re.search(r"[&|;<>$]", command.text) else "process"


def way(words: list[str]) -> str | None:
    if words[:2] in DOORS:
        return "process"
    if words[0] in LIGHT or words[0] == "hybrid-infomax":
        return "here"
    if words[:2] == ["python", "-m"]:
        return "here" if words[2] in MODULES else "process"
    if words[:2] == ["python", "trainer/main.py"]:
        return "here" if QUESTIONS & set(words) else "process"
    return None
