"""What the tests share: one thread a process, and one small real data set."""

import os
import signal
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in processes of tests

import pytest
import torch

from data_pipelines.dataset import Dataset
from data_pipelines.shards.make import make
from tests.helpers.forked_ranks import RankForker

# A shell that starts tests with `&` leaves Ctrl-C ignored, in them and in the programs that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # ranks and loaders of a test share a few cores


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Dataset:
    """scikit-learn's digits as shards of 500 images; read only: copy its `root` before changing anything."""
    to = tmp_path_factory.mktemp("digits")
    return make("digits", to=to, workers=1, progress=False)


@pytest.fixture(scope="session")
def forker():
    """The parent process of forked ranks."""
    with RankForker() as parent:
        yield parent


def pytest_addoption(parser):
    parser.addoption("--at-least", type=int, default=0, help="fail where fewer tests pass: some were not run")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Of `-n auto`: a worker a core, four at most, since many tests start ranks."""
    return min(4, len(os.sched_getaffinity(0)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """On several workers a file's tests stay together: they share what is dear. So do those of Slurm."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "tests/slurm" if file.startswith("tests/slurm/") else file

    return Scheduling(config, log)


def pytest_sessionfinish(session):
    """Tests that are skipped or no longer collected fail a run that says how many must pass."""
    if hasattr(session.config, "workerinput"):  # of xdist: the run is not its own
        return
    passed = session.config.pluginmanager.get_plugin("terminalreporter").stats.get("passed", ())
    if len(passed) < session.config.option.at_least:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    """Tests and seconds of each suite, set-up included."""
    tests, seconds = Counter(), Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                suite = Path(report.nodeid.partition("::")[0]).parent.as_posix()
                tests[suite] += report.when == "call"
                seconds[suite] += report.duration
    terminalreporter.section("suites")
    for suite, spent in seconds.most_common():
        terminalreporter.write_line(f"{spent:7.0f} s  {tests[suite]:5} tests  {suite}")
    if (passed := len(terminalreporter.stats.get("passed", ()))) < (least := config.option.at_least):
        terminalreporter.write_line(f"{passed} tests passed, and at least {least} must", red=True)
