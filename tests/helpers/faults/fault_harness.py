"""Starts of tiny runs that meet faults, and the undisturbed runs that they are compared with."""

import itertools
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.faults import tiny_runs
from tests.helpers.forked_ranks import ForkedRanks, RankForker

PATIENCE = 120.0  # seconds that a tiny run may take, on a machine that does other things as well
BOUND = 30.0  # seconds for a step and a save, of which a tiny run needs a tenth of one
KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class UndisturbedRun:
    """A run without a fault: folder, logs of its ranks, seconds to its first step and to its end."""

    folder: Path
    logs: Path
    starting: float
    seconds: float


class FaultHarness:
    """Starts runs under `folder`, on the embedded digits in `data`.

    `more` are arguments in addition to the tiny recipe; an engine is named as its launch file.
    """

    def __init__(self, forker: RankForker, folder: Path, data: Path):
        self.forker, self.folder, self.data = forker, Path(folder), data
        self._numbers = itertools.count(1)
        self._undisturbed: dict[tuple, UndisturbedRun] = {}

    def new_outputs(self) -> Path:
        """A new folder of outputs; the run's folder is `run` in it."""
        return self.folder / f"outputs-{next(self._numbers)}"

    def start(
        self, outputs: Path, recipe: str, world: int, *more: str, engine: str = "ddp", **hooks: object
    ) -> ForkedRanks:
        """Starts the run in `outputs`; `hooks` are arguments of `fault_hooks.install`."""
        words = tiny_runs.arguments(recipe, outputs, self.data, *more)
        return self.forker.start(self.folder / f"logs-{next(self._numbers)}", world, words, engine, **hooks)

    def finish(self, outputs: Path, recipe: str, world: int, *more: str, **options: object) -> ForkedRanks:
        """Starts the run without a fault and waits for its end, with status 0 on every rank."""
        ranks = self.start(outputs, recipe, world, *more, **options)
        assert ranks.wait(PATIENCE) == [0] * world, ranks.text()
        return ranks

    def undisturbed_run(self, recipe: str, world: int, *more: str) -> UndisturbedRun:
        """The undisturbed run of a recipe on `world` ranks, made once; all its checkpoints are kept."""
        key = (recipe, world, *more)
        if key not in self._undisturbed:
            outputs, began = self.new_outputs(), time.monotonic()
            ranks = self.start(outputs, recipe, world, *more, "save.keep=1000", record=True)
            while ranks.stage()[0] == "start" and ranks.running():
                time.sleep(0.01)
            starting = time.monotonic() - began
            assert ranks.wait(PATIENCE) == [0] * world, ranks.text()
            self._undisturbed[key] = UndisturbedRun(
                outputs / "run", ranks.logs, starting, time.monotonic() - began
            )
        return self._undisturbed[key]
