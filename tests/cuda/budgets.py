"""The most that a step of each recipe may launch and move on a GPU, in budgets.yaml.

    python -m tests.cuda.budgets                # steps all of them, and writes the file anew: a minute or two
    python -m tests.cuda.budgets dim_local      # these

A number falls with each improvement: a test fails where a budget is a tenth above what a step does.
"""

import sys
import tempfile
from pathlib import Path

import yaml

FILE = Path(__file__).with_name("budgets.yaml")
SLACK = 1.03  # of what was measured
LOOSE = 1.10  # a budget this much above a step is not of that step any more


def read() -> dict[str, dict]:
    """By recipe: `launches`, `megabytes`, `copies` from the host, `nondeterministic` operations."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def write(measured: dict[str, dict]) -> None:
    """Replaces the budgets of the recipes that were stepped."""
    budgets = read() | {name: budget(step) for name, step in measured.items()}
    text = "# Written by `python -m tests.cuda.budgets`: ceilings of a step, 3 % above what it did.\n"
    FILE.write_text(text + yaml.safe_dump(budgets, sort_keys=True, width=120), encoding="utf-8")


def budget(step: dict) -> dict:
    return {
        "launches": int(step["launches"] * SLACK),
        "megabytes": int(step["megabytes"] * SLACK),
        "copies": step["copies"],
        "nondeterministic": step["nondeterministic"],
    }


if __name__ == "__main__":
    from tests.cuda.device import steps

    with tempfile.TemporaryDirectory() as folder:
        write(steps(sys.argv[1:] or sorted(read()), Path(folder)))
