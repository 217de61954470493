"""Commands that a run prints for its user, to be typed as they stand."""

import json
import os
import shlex
import sys
from pathlib import Path

import psutil

from data_pipelines.access import local_folder
from trainer.distributed.launcher import LAUNCHERS, started_by
from trainer.distributed.variables import local_world_size, world_size
from trainer.recipe import loading
from trainer.recipe.schema import Data
from trainer.recipe.yaml12 import to_yaml_line
from trainer.runs.folder import RunFolder

CONSOLE = "hybrid-infomax"


def entry() -> str:
    """What starts a recipe in one process, as this program was installed and called."""
    if Path(sys.argv[0]).name in (CONSOLE, "cli.py"):
        return f"{CONSOLE} train"
    if loading.RECIPES == loading.INSTALLED:
        return "accelerate launch -m trainer.main"
    script, here = loading.CHECKOUT / "trainer" / "main.py", Path.cwd()
    shown = script.relative_to(here) if script.is_relative_to(here) else script
    return f"accelerate launch {shlex.quote(str(shown))}"


def train(name: str) -> str:
    """Trains a recipe."""
    return f"{entry()} recipe={name}"


def evaluate(folder: RunFolder) -> str:
    """Evaluates the run again, with every probe."""
    return f"{entry()} recipe=evaluate {shlex.quote(f'from={to_yaml_line(str(folder.path))}')}"


def sample(folder: RunFolder) -> str:
    """Draws images of a diffusion run."""
    return f"{entry()} recipe=sample {shlex.quote(f'from={to_yaml_line(str(folder.path))}')}"


def measure(folder: RunFolder) -> str:
    """Measures images of a diffusion run again, of another seed."""
    words = f"{entry()} recipe=measure {shlex.quote(f'from={to_yaml_line(str(folder.path))}')}"
    return f"{words} seed=1"


def load_encoder(folder: RunFolder) -> str:
    """The line of Python that loads the exported encoder."""
    path = json.dumps(str(folder.encoder), ensure_ascii=False)
    return f"from trainer.exports.encoder import load_encoder; encoder = load_encoder({path})"


def has_labels(data: Data) -> bool:
    """Whether images have labels, as far as a file of this machine says: probes need them."""
    folder = local_folder(data.root)
    try:
        return folder is None or json.loads((folder / "dataset.json").read_text())["classes"] != []
    except (OSError, ValueError, KeyError, TypeError):
        return True  # unknown


def continuation() -> str:
    """The command that started this run; empty where a script did: in a job of Slurm, on several machines."""
    if "SLURM_JOB_ID" in os.environ or local_world_size() != world_size():
        return ""
    try:
        process = started_by()
        words = process.cmdline() if process else list(sys.argv)
    except psutil.Error:  # it has just ended
        return ""
    if process and Path(words[1]).name in LAUNCHERS:  # python /.../bin/accelerate launch ...
        words = [Path(words[1]).name, *words[2:]]
    elif process or words[0].endswith(".py"):  # python -m accelerate.commands.launch ..., python main.py
        words = ["python", *words[bool(process) :]]
    else:
        words[0] = Path(words[0]).name
    return shlex.join(words)
