"""Real ranks at a second a start: a parent that has imported everything forks them.

    with RankForker() as forker:
        ranks = forker.start(folder / "logs", 2, ["recipe=quickstart", ...], die={"rank": 1, "images": 640})
        assert ranks.wait(60) == [0, 0], ranks.text()

The parent is this module run by an interpreter of its own, with one thread and no parallel region before the
fork. A forked rank is what `accelerate launch` starts: trainer/main.py, or another script, run with its rank
and the number of ranks in the environment. `fault_hooks` makes faults happen inside main.py.
"""

import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.helpers import ROOT

MAIN = ROOT / "trainer" / "main.py"
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
GRACE = 1.0  # seconds between a launcher's SIGTERM to the ranks that are left and its SIGKILL; torchrun: 30
ENGINES = {  # what accelerate launch exports for the files of recipes/launch
    "ddp": {},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    **{
        f"zero{stage}": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
        for stage in (1, 2, 3)
    },
}


class RankForker:
    """The parent process of ranks, which forks them; both end with this process."""

    def __init__(self):
        clean = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=ROOT,
            env=clean | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._running: dict[int, tuple[ForkedRanks, int]] = {}  # by process: its start, its rank

    def start(
        self, logs: Path, world: int, arguments: list[str], engine: str = "ddp", **hooks: object
    ) -> "ForkedRanks":
        """Forks ranks that run main.py with `arguments`; their output and notes are written to `logs`."""
        return self._start(MAIN, logs, world, arguments, ENGINES[engine], hooks)

    def run(self, script: Path, logs: Path, world: int, *arguments: str) -> "ForkedRanks":
        """Forks ranks that run another script; their output is written to `logs`."""
        return self._start(script, logs, world, list(arguments), {}, None)

    def _start(
        self,
        script: Path,
        logs: Path,
        world: int,
        arguments: list[str],
        engine: dict[str, str],
        hooks: dict[str, object] | None,
    ) -> "ForkedRanks":
        logs.mkdir(parents=True)
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} | engine
        request = {"script": str(script), "logs": str(logs), "world": world, "arguments": arguments}
        request |= {"environment": environment if world > 1 else {}, "hooks": hooks}
        ranks = ForkedRanks(self, self._ask("start", request), logs)
        self._running |= {process: (ranks, rank) for rank, process in enumerate(ranks.processes)}
        return ranks

    def note_ends(self) -> None:
        """Notes the ends since the last call with their starts: a later rank may bear the same number."""
        for process, status in self._ask("ended", {}).items():
            ranks, rank = self._running.pop(int(process))
            ranks.ends[rank] = status

    def _ask(self, command: str, request: dict):
        self._process.stdin.write(json.dumps({"command": command} | request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the parent of the ranks has died"
        return json.loads(answer)

    def close(self) -> None:
        self._process.stdin.close()  # the parent then kills the ranks that are left, and ends
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> "RankForker":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class ForkedRanks:
    """The processes of one start, in the order of their ranks."""

    def __init__(self, forker: RankForker, processes: list[int], logs: Path):
        self.forker, self.processes, self.logs = forker, processes, logs
        self.ends: list[int | None] = [None] * len(processes)  # exit status, or minus the signal

    def statuses(self) -> list[int | None]:
        """The exit status of each rank, or minus the signal that killed it; None while it runs."""
        self.forker.note_ends()
        return list(self.ends)

    def running(self) -> bool:
        return None in self.statuses()

    def signal(self, number: int, rank: int | None = None) -> None:
        """Sends a signal to a rank, or to all."""
        for index, status in enumerate(self.statuses()):
            if status is None and rank in (None, index):
                with suppress(ProcessLookupError):
                    os.kill(self.processes[index], number)

    def wait(self, timeout: float, alone: bool = False) -> list[int]:
        """Waits for all ranks. Where one fails, the others get SIGTERM and then SIGKILL, as from a launcher.

        Args:
            alone: send no signals, and only wait.

        Raises:
            TimeoutError: some still ran; they were killed.
        """
        deadline, sigterm_at = time.monotonic() + timeout, None
        while None in (statuses := self.statuses()):
            now = time.monotonic()
            if now > deadline:
                self.kill()
                raise TimeoutError(f"after {timeout} s the ranks' ends were {statuses}\n{self.text()}")
            if sigterm_at is None and any(statuses) and not alone:
                sigterm_at = now
                self.signal(signal.SIGTERM)
            if sigterm_at is not None and now - sigterm_at > GRACE:
                self.signal(signal.SIGKILL)
            time.sleep(0.02)
        return statuses

    def kill(self) -> list[int]:
        """Kills all at once."""
        self.signal(signal.SIGKILL)
        while None in (statuses := self.statuses()):
            time.sleep(0.005)
        return statuses

    def stage(self, rank: int = 0) -> tuple[str, int]:
        """The rank's stage, as `fault_hooks.note_stages` names it, and the images seen before it."""
        path = self.logs / f"stage-{rank}"
        words = path.read_text().split() if path.exists() else []
        return (words[0], int(words[1])) if len(words) == 2 else ("start", 0)

    def text(self, rank: int | None = None) -> str:
        """The output of a rank, or of all."""
        ranks = range(len(self.processes)) if rank is None else [rank]
        return "".join((self.logs / f"rank-{number}.log").read_text() for number in ranks)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---- in the parent of the ranks --------------------------------------------------------------------


def import_all() -> None:
    """Imports all that a run imports, which is most of the time of a start."""
    from trainer.distributed import launch

    launch.set_environment()
    import accelerate.state  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch._dynamo  # noqa: F401 - what an optimizer imports when it is made

    from trainer.engines import fsdp  # noqa: F401
    from trainer.tasks import diffuse, evaluate, pretrain, sample  # noqa: F401

    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads after the imports: a fork would lose the others"


def serve() -> tuple[int, dict]:
    """Answers requests to the end; returns in each forked rank, with its number and the request."""
    alive: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if request["command"] == "start":
            answer = []
            for rank in range(request["world"]):
                if (process := os.fork()) == 0:
                    return rank, request
                answer.append(process)
            alive.update(answer)
        else:
            answer = {}
            while alive and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                process, status = ended
                answer[process] = os.waitstatus_to_exitcode(status)
                alive.discard(process)
        print(json.dumps(answer), flush=True)
    for process in alive:
        os.kill(process, signal.SIGKILL)
    os._exit(0)


def become(rank: int, request: dict) -> None:
    """Turns this process into a rank that a launcher has just started."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which tests under nohup would leave ignored
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no rank outlives the tests
    world, logs = request["world"], Path(request["logs"])
    log = os.open(logs / f"rank-{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    for descriptor, standard in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(descriptor, standard)
    os.environ.update(request["environment"])
    if world > 1:
        os.environ.update(dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)))
        os.environ.update(dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(world)))
    sys.argv = [request["script"], *request["arguments"]]
    sys.path[0] = str(Path(request["script"]).parent)
    if request["hooks"] is not None:
        fault_hooks.install(rank, logs, **request["hooks"])


if __name__ == "__main__":
    sys.path.insert(1, str(ROOT))
    from tests.helpers.faults import fault_hooks

    import_all()
    number, request = serve()
    become(number, request)
    runpy.run_path(request["script"], run_name="__main__")
