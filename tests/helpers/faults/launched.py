"""Runs started by the real launcher, and their processes, which can be killed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.helpers import ROOT
from tests.helpers.forked_ranks import MAIN


class Launched:
    """`accelerate launch` of main.py on several processes; its output goes to the file `log`."""

    def __init__(self, log: Path, world: int, arguments: list[str], engine: str = "ddp"):
        command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
        command += [
            f"recipes/launch/{engine}.yaml",
            "--num_processes",
            str(world),
            "--main_process_port",
            "0",
        ]
        with open(log, "w") as file:
            self.launcher = subprocess.Popen(
                [*command, str(MAIN), *arguments],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.log, self.world, self._ranks = log, world, []

    def ranks(self) -> list[psutil.Process]:
        """The processes that run main.py, in the order of their ranks; none until all are there."""
        if not self._ranks:
            children = {}
            for child in psutil.Process(self.launcher.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if str(MAIN) in child.cmdline()[:3]:
                        children[int(child.environ()["RANK"])] = child
            if len(children) == self.world:
                self._ranks = [child for _, child in sorted(children.items())]
        return self._ranks

    def until(self, reached, timeout: float) -> None:
        """Waits for something to become true while the launcher runs."""
        deadline = time.monotonic() + timeout
        while not reached():
            assert self.launcher.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def end(self, timeout: float) -> int:
        """Waits for the launcher and all ranks; the launcher's status."""
        status = self.launcher.wait(timeout)
        assert self.ranks_end(timeout), self.log.read_text()
        return status

    def ranks_end(self, timeout: float) -> bool:
        """Waits for the ranks alone; whether all ended in time."""
        _, alive = psutil.wait_procs(self._ranks, timeout)
        return not alive

    def kill_all(self) -> None:
        for process in [psutil.Process(self.launcher.pid), *self.ranks()]:
            process.send_signal(signal.SIGKILL)
        self.end(30)
