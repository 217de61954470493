"""Which of the packages that most often break can be imported, tried in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress

from trainer.recipe import loading
from trainer.tasks.environment.private import one_line
from trainer.tasks.environment.probe import MARK, PROBED

PATIENCE = 60  # seconds for an import


def probe() -> dict[str, dict]:
    """Imports the packages that most often break, in processes of their own; module -> facts, or its error.

    Two processes run side by side. A module that ends or hangs its process costs a line.
    """
    environment = dict(os.environ)
    # Last, so that the modules are those that training would import.
    paths = [environment.get("PYTHONPATH", ""), str(loading.CHECKOUT)]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    running = {}
    for names in PROBED:
        command = [sys.executable, "-m", "trainer.tasks.environment.probe", *names]
        running[names] = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    facts: dict[str, dict] = {}
    for names, process in running.items():
        facts |= facts_of(names, process)
    return facts


def facts_of(names: tuple[str, ...], process: "subprocess.Popen[str]") -> dict[str, dict]:
    """What one process says about its modules."""
    late = False
    try:
        out, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        late = True
    facts: dict[str, dict] = {}
    for line in out.splitlines():
        if line.startswith(MARK):
            with suppress(ValueError):  # a library may print such a line, too
                facts |= json.loads(line.removeprefix(MARK))
    status = process.returncode
    ended = signal.Signals(-status).name if status < 0 else f"status {status}"
    why = f"no answer within {PATIENCE} s" if late else f"the import ends the process ({ended})"
    for name in names:
        facts.setdefault(name, {"error": why})
        if "error" in facts[name]:
            facts[name]["error"] = one_line(facts[name]["error"])
    return facts
