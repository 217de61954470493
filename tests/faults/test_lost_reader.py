"""A training whose terminal goes away, which is a request to stop, or whose reader does, which is nothing."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.command_lines import process, tiny
from trainer.checkpoints.load import kept

pytestmark = pytest.mark.slow

PATIENCE = 120.0  # seconds, on a machine that does other things as well
LONG = ["images=128000", "save.every=1280", "log.every=1280", "run=run"]


def words(folder: Path, digits, *more: str) -> list[str]:
    return [sys.executable, "trainer/main.py", *tiny(folder, digits.root, *more)]


def until(happens) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_saved(run: Path) -> bool:
    return (run / "checkpoints").exists() and bool(kept(run / "checkpoints"))


def test_a_terminal_that_hangs_up_is_a_request_to_stop(tmp_path, digits):
    child, terminal = pty.fork()
    if child == 0:  # the leader of a session of that terminal, as a shell's job is
        os.chdir(ROOT)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which tests under nohup would leave ignored
        os.execv(sys.executable, words(tmp_path, digits, *LONG))
    run = tmp_path / "run"
    until(lambda: has_saved(run))
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    images = kept(run / "checkpoints")[-1]
    assert (run / "stopped").read_text().startswith(f"{images}\n")
    assert "SIGHUP" in (run / "stopped").read_text()
    more = [word for word in words(tmp_path, digits, *LONG) if not word.startswith("images=")]
    done = process(*more, f"images={images + 256}")
    assert done.status == 0, done
    assert f"{images:,}" in done.out  # it continues there


def test_a_reader_that_goes_away_changes_nothing(tmp_path, digits):
    training = subprocess.Popen(
        words(tmp_path, digits, "images=2560", "log.every=128", "run=run"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    training.stdout.readline()  # as `| head -1` does
    training.stdout.close()
    assert training.wait(PATIENCE) == 0
    assert (tmp_path / "run" / "done").exists()


def test_under_nohup_it_goes_on(tmp_path, digits):
    training = subprocess.Popen(
        words(tmp_path, digits, "images=12800", "run=run"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    until(lambda: has_saved(tmp_path / "run"))
    training.send_signal(signal.SIGHUP)
    assert training.wait(PATIENCE) == 0
    assert (tmp_path / "run" / "done").exists()
