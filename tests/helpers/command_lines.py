"""The command line for tests: trainer/main.py run as a script, in this process or in one of its own."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAIN = ROOT / "trainer" / "main.py"


class Done(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


def tiny(outputs: Path, root: Path, *more: str) -> list[str]:
    """Arguments of a run of two steps that measures little; of the quickstart only the frame is left."""
    return [
        "recipe=quickstart",
        "images=256",
        "batch=128",
        "groups.norm=64",
        "data.size=16",
        "encoder.channels=[32, 64]",
        "encoder.fc=256",
        "objective.bound=jsd",
        "objective.critic={units: 64, score: dot}",
        "schedule={kind: constant}",
        "optimizer.lr=1e-3",
        "save.every=128",
        "evaluate.every=0",
        "evaluate.at_end=false",
        "evaluate.online_images=128",
        "data.threads=1",
        "tracking.uri=none",
        f"outputs={outputs}",
        f"data.root={root}",
        *more,
    ]


def script(capsys, *arguments: str) -> Done:
    """Runs main.py as `python` would, but in this process: seconds less."""
    from accelerate.state import AcceleratorState

    from trainer.distributed import launch

    def leave(status: int) -> None:  # the real one ends the process
        raise SystemExit(status)

    AcceleratorState._reset_state(True)  # a process trains in one precision; tests in several
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ACCELERATE_USE_CPU", "ACCELERATE_ALLOW_CPU"):
            patch.setenv(name, "true")
        patch.setattr(launch, "leave", leave)
        patch.setattr(sys, "argv", [str(MAIN), *arguments])
        patch.setattr(sys, "path", [str(MAIN.parent), *sys.path])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(MAIN), run_name="__main__")
    AcceleratorState._reset_state(True)
    out, err = capsys.readouterr()
    return Done(left.value.code, out, err)


def process(*words: str | Path, cwd: Path = ROOT, **variables: str) -> Done:
    """Runs a command in a process of its own, with these environment variables more."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    environment |= {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= variables
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    return Done(done.returncode, done.stdout, done.stderr)


def mistake(done: Done) -> str:
    """The one line of a user's mistake; fails where there is more, less, or another exit status."""
    assert done.status == 2, done
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: "), lines[0]
    assert "Traceback" not in done.out + done.err
    return lines[0].removeprefix("error: ")
