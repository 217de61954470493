"""The launcher that started this process, what it was asked for, and how it ends."""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import yaml

ACCELERATE = {
    "accelerate",
    "accelerate-launch",
    "accelerate.commands.accelerate_cli",
    "accelerate.commands.launch",
}
LAUNCHERS = ACCELERATE | {"torchrun"}
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def started_by() -> psutil.Process | None:
    """The `accelerate launch` (or torchrun) that started this process, if one did."""
    for process in psutil.Process().parents()[:3]:
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if LAUNCHERS.intersection(Path(word).name for word in words[:3]):
            return process
    return None


def stop_with(launcher: psutil.Process | None) -> None:
    """Makes the kernel send SIGTERM when the launcher dies: a rank without a supervisor saves and ends.

    Otherwise it would train on, and keep the run's folder locked against the next start.
    """
    if launcher and launcher.pid == os.getppid() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher.pid:  # the launcher died before prctl
            os.kill(os.getpid(), signal.SIGTERM)


def launch_options(words: list[str]) -> dict[str, Any]:
    """The options of an `accelerate launch`: those in its words go before those in its configuration file.

    The file is the one that the words name, or else accelerate's default file.
    """
    options: dict[str, str] = {}
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        following = words[number + 1] if number + 1 < len(words) else ""
        if name.startswith("--"):
            options.setdefault(name[2:].replace("-", "_"), value if equals else following)
    file = Path(options.get("config_file") or default_config_file())
    return (yaml.safe_load(file.read_text()) or {} if file.exists() else {}) | options


def default_config_file() -> Path:
    """The file that `accelerate config` writes, which is used when no other is named."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", os.path.join(cache, "huggingface"))
    return Path(home).expanduser() / "accelerate" / "default_config.yaml"


def accelerate_words() -> list[str]:
    """The words of the `accelerate launch` that started this process; empty where none did."""
    process = started_by()
    words = process.cmdline() if process else []
    return words if ACCELERATE.intersection(Path(word).name for word in words[:3]) else []


def accelerate_options() -> dict[str, Any]:
    """The options of the `accelerate launch` that started this process; empty where none did."""
    words = accelerate_words()
    return launch_options(words) if words else {}


def ranks_were_asked_for() -> bool:
    """Whether somebody chose the number of ranks, and not `accelerate launch`, which counts GPUs."""
    words = accelerate_words()
    return not words or "num_processes" in launch_options(words)


def quieten() -> None:
    """Ends an `accelerate launch` of one process, which would print a traceback below our last line.

    Such a launcher has nothing left to do but to raise that this process failed. A launcher of several
    processes is left alone: it has other ranks to end.
    """
    process = started_by()
    if process and process.pid == os.getppid() and "WORLD_SIZE" not in os.environ:
        process.terminate()
