"""Where faults are tried: starts of tiny runs, and the undisturbed ones that they are compared with."""

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.faults import tiny_runs
from tests.helpers.faults.forked_ranks import Nursery, Ranks

PATIENCE = 120.0  # seconds that a tiny run may take, on a machine that does other things as well


@dataclass(frozen=True)
class Calm:
    """An undisturbed run: its folder, what its ranks noted, the seconds to its first step and to its end."""

    run: Path
    logs: Path
    starting: float
    seconds: float


class Stand:
    """Starts runs under `folder`, on the embedded digits in `data`.

    `more` is recipe arguments on top of the tiny recipe; an engine is that of a launch file.
    """

    def __init__(self, nursery: Nursery, folder: Path, data: Path):
        self.nursery, self.folder, self.data = nursery, Path(folder), data
        self._numbers = itertools.count(1)
        self._calm: dict[tuple, Calm] = {}

    def fresh(self) -> Path:
        """A folder of outputs in which nothing is yet; the run's is `run` within it."""
        return self.folder / f"outputs-{next(self._numbers)}"

    def start(
        self, outputs: Path, recipe: str, world: int, *more: str, engine: str = "ddp", **hooks: object
    ) -> Ranks:
        """One start of the run in `outputs`; hooks as `fault_hooks.install` takes them."""
        words = tiny_runs.arguments(recipe, outputs, self.data, *more)
        return self.nursery.start(self.folder / f"logs-{next(self._numbers)}", world, words, engine, **hooks)

    def finish(self, outputs: Path, recipe: str, world: int, *more: str, **options: object) -> Ranks:
        """A start that nothing happens to: it must end well."""
        ranks = self.start(outputs, recipe, world, *more, **options)
        assert ranks.wait(PATIENCE) == [0] * world, ranks.text()
        return ranks

    def calm(self, recipe: str, world: int, *more: str) -> Calm:
        """The undisturbed run of this recipe on so many ranks, made once; all its checkpoints are kept."""
        key = (recipe, world, *more)
        if key not in self._calm:
            outputs, began = self.fresh(), time.monotonic()
            ranks = self.start(outputs, recipe, world, *more, "save.keep=1000", record=True)
            while ranks.stage()[0] == "start" and ranks.running():
                time.sleep(0.01)
            starting = time.monotonic() - began
            assert ranks.wait(PATIENCE) == [0] * world, ranks.text()
            self._calm[key] = Calm(outputs / "run", ranks.logs, starting, time.monotonic() - began)
        return self._calm[key]
