"""Jobs of a worker on ranks: forked, or started by the real launcher, which takes half a minute longer."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT
from tests.helpers.forked_ranks import RankForker

HERE = Path(__file__).parent
PATIENCE = 900.0  # seconds, on a machine that does other things as well


def fork(forker: RankForker, folder: Path, world: int, jobs: list[dict], worker: str = "worker.py") -> dict:
    """Runs a worker on `world` forked ranks and returns the results of each job by its name."""
    described = describe(folder, str(world), jobs)
    ranks = forker.run(HERE / worker, folder / f"logs-{world}", world, str(described))
    assert ranks.wait(PATIENCE) == [0] * world, ranks.text()
    return results(described, ranks.text())


def launch(folder: Path, world: int, jobs: list[dict], file: str) -> dict:
    """The same by `accelerate launch`, under the launch file of an engine."""
    described = describe(folder, f"{file}-{world}", jobs)
    config = ROOT / "recipes/launch" / f"{file}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(config), "--num_processes", str(world), "--main_process_port", "0"]
    done = subprocess.run(
        [*command, str(HERE / "worker.py"), str(described)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TORCH_CPP_LOG_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return results(described, done.stdout + done.stderr)


def describe(folder: Path, name: str, jobs: list[dict]) -> Path:
    described = folder / f"jobs-{name}.json"
    described.write_text(json.dumps(jobs))
    return described


def results(described: Path, output: str) -> dict:
    """What rank 0 has written; `output` of the ranks says why there is nothing."""
    path = described.with_name(described.name.replace("jobs-", "results-"))
    assert path.exists(), output
    return json.loads(path.read_text())
