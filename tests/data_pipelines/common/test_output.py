"""Output whose reader goes away: the program runs on, and other errors of writing are still errors."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.common import output
from tests.helpers import ROOT

PROGRAM = """
import os, sys
from data_pipelines.common.output import outlive_readers
outlive_readers()
print("begun", flush=True)
sys.stdin.readline()
for stream in (sys.stdout, sys.stderr):
    for number in range(2000):
        print(number, "x" * 100, file=stream, flush=number % 2 == 1)
os.write(1, b"as a library in C")
os.system("echo as a child")
open(sys.argv[1], "w").write("to the end")
"""


def start(ended: Path, **streams) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, str(ended)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True, **streams)


def runs_to_the_end(program: subprocess.Popen, ended: Path) -> bool:
    program.stdin.write("\n")
    program.stdin.close()
    return program.wait(60) == 0 and ended.read_text() == "to the end"


def test_a_pipe_that_is_closed(tmp_path):
    program = start(tmp_path / "ended", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout.readline() == "begun\n"
    program.stdout.close()
    program.stderr.close()
    assert runs_to_the_end(program, tmp_path / "ended")


def test_a_terminal_that_goes_away(tmp_path):
    ours, theirs = pty.openpty()
    program = start(tmp_path / "ended", stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert os.read(ours, 100).strip() == b"begun"
    os.close(ours)
    assert runs_to_the_end(program, tmp_path / "ended")


def test_no_output_at_all(tmp_path):
    """As `>&- 2>&-` starts it: Python has no such streams then, and their numbers are the next files'."""
    program = start(tmp_path / "ended", preexec_fn=lambda: (os.close(1), os.close(2)))
    assert runs_to_the_end(program, tmp_path / "ended")


def test_a_full_disk_is_still_an_error(tmp_path):
    with open("/dev/full", "w") as full:
        program = start(tmp_path / "ended", stdout=full, stderr=subprocess.PIPE)
        _, complaint = program.communicate("\n", timeout=60)
    assert program.returncode not in (0, None)
    assert "No space left" in complaint


def test_what_is_read_arrives_whole(tmp_path):
    program = start(tmp_path / "ended", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    text, errors = program.communicate("\n", timeout=60)
    numbers = [f"{number} {'x' * 100}" for number in range(2000)]
    assert text.splitlines()[:2001] == ["begun", *numbers]
    assert "as a library in C" in text
    assert errors.splitlines() == numbers


def test_a_file_has_each_line_at_once(tmp_path):
    with open(tmp_path / "out", "w") as out:
        command = [sys.executable, "-c", PROGRAM.replace(", flush=True", ""), str(tmp_path / "ended")]
        program = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, text=True, stdout=out, stderr=out
        )
        until = time.monotonic() + 30
        while not (tmp_path / "out").read_text() and time.monotonic() < until:
            time.sleep(0.02)
        assert (tmp_path / "out").read_text() == "begun\n"  # it waits for a line
        assert runs_to_the_end(program, tmp_path / "ended")


def test_streams_that_others_put_there_stay(capsys):
    before = sys.stdout, sys.stderr
    output.outlive_readers()
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize(
    "words",
    [
        ["trainer/main.py", "--list"],
        ["trainer/main.py", "recipe=dim_local", "--print"],
        ["-m", "trainer.cli", "list"],
        ["-m", "trainer.checkpoints", "--help"],
        ["-m", "trainer.tracking", "--help"],
        ["-m", "data_pipelines.shards", "--help"],
        ["-m", "trainer.exports.torchvision_resnet", "--help"],
    ],
)
def test_doors_whose_output_nobody_reads(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
