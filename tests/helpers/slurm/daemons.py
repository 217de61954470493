"""A real Slurm for the tests of this folder and its jobs: munged, slurmctld and two slurmd (cluster.sh)."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers import ROOT

CLUSTER = str(ROOT / "tests/slurm/cluster.sh")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
ENVIRONMENT["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
ENVIRONMENT["OMP_NUM_THREADS"] = "1"
PATIENCE = 240  # seconds for a command; on a busy machine one that starts Python takes a minute
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def why_unavailable() -> str | None:
    """Why no cluster can be started here; None where one can."""
    if os.geteuid() != 0:
        return "a throw-away Slurm cluster wants root"
    programs = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter")
    missing = [name for name in programs if not shutil.which(name, path=ENVIRONMENT["PATH"])]
    if missing:
        packages = "slurmctld slurmd slurm-client munge iproute2 util-linux"
        return f"{', '.join(missing)} missing: apt-get install {packages}"
    if subprocess.run(["unshare", "--mount", "--uts", "--net", "--pid", "--fork", "true"]).returncode:
        return "namespaces are not allowed here"
    return None


class Slurm:
    """The cluster: `slurm("squeue", ...)` runs a command on its head node."""

    def __init__(self, directory: Path):
        self.env = ENVIRONMENT | {"CLUSTER_DIR": str(directory), "NODES": "2"}

    def __call__(self, *words: str, cluster: tuple[str, ...] = ("exec",), directory: Path = ROOT) -> str:
        command = [CLUSTER, *cluster, *words]
        for _ in range(3 if "scontrol" in words else 1):  # a slow controller drops the connection: SIGPIPE
            done = subprocess.run(
                command, env=self.env, cwd=directory, capture_output=True, text=True, timeout=PATIENCE
            )
            if done.returncode != 128 + signal.SIGPIPE:
                break
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip() or done.stderr.strip()


class Job:
    """A job of one of the scripts in slurm/."""

    def __init__(self, slurm: Slurm, folder: Path, script: str, *words: str, directory: Path = ROOT):
        """`words`: sbatch's options, then the training's arguments; `directory`: where it is submitted."""
        self.slurm, self.log = slurm, folder / "job.log"
        options = [word for word in words if word.startswith("-")]
        arguments = [word for word in words if word not in options]
        # --time: well above the 300 s of --signal, which would be sent at once otherwise
        self.id = slurm(
            *("sbatch", "--parsable", "--time=30", f"--output={self.log}", *options),
            *(os.path.relpath(ROOT / "slurm" / script, directory), *arguments),
            directory=directory,
        )

    def field(self, key: str) -> str:
        """A field of `scontrol --details show job`: JobState, Restarts, ExitCode, ..."""
        shown = self.slurm("scontrol", "--details", "show", "job", self.id)
        return re.search(rf"\b{key}=(\S+)", shown)[1]

    @property
    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def until(self, condition, seconds: float = 1200):
        """Waits for `condition()`, which must become true while the job lives, or at its end."""
        end = time.monotonic() + seconds
        while True:
            state = self.field("JobState")  # before condition(), which may wait for this very state
            if condition():
                return
            assert state not in ENDS, f"{state}: {self.text}"
            assert time.monotonic() < end, f"nothing after {seconds} s, {state}: {self.text}"
            time.sleep(0.1)

    def end(self) -> str:
        """Waits for the end of the job; returns its last state."""
        self.until(lambda: self.field("JobState") in ENDS)
        return self.field("JobState")
