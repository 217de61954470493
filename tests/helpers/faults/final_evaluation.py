"""Faults in the final evaluation of a run, when all of its training is saved."""

import json
import signal
import time

from tests.helpers.faults import tiny_runs
from tests.helpers.faults.fault_harness import BOUND, PATIENCE, FaultHarness
from tests.helpers.faults.fault_scenarios import errors
from tests.helpers.faults.tiny_runs import IMAGES
from tests.helpers.forked_ranks import ForkedRanks

PROBES = ["evaluate.at_end=true", "evaluate.controls=false", "evaluate.mlp=null"]
LONG = [*PROBES[:2], "evaluate.mlp.epochs=100000"]  # on each rank some probes that take minutes


def wait_for_the_end(ranks: ForkedRanks) -> None:
    """Waits until all ranks have been in the final evaluation for two seconds."""
    deadline = time.monotonic() + PATIENCE
    while {ranks.stage(number)[0] for number in range(len(ranks.processes))} != {"finish"}:
        assert ranks.running(), ranks.text()
        assert time.monotonic() < deadline, ranks.text()
        time.sleep(0.02)
    time.sleep(2)
    assert ranks.statuses() == [None] * len(ranks.processes), ranks.text()


def requested_to_stop_at_the_end(
    harness: FaultHarness, world: int, rank: int | None, *more: str, **hooks: object
) -> None:
    """A request to stop in the final evaluation, when all is saved: all ranks end, and nothing has failed."""
    recipe = "moco"
    undisturbed, outputs = harness.undisturbed_run(recipe, world), harness.new_outputs()
    ranks, run = harness.start(outputs, recipe, world, *more, **hooks), outputs / "run"
    wait_for_the_end(ranks)
    ranks.signal(signal.SIGTERM, rank)
    deadline = time.monotonic() + BOUND
    while rank is not None and ranks.statuses()[rank] is None:
        assert time.monotonic() < deadline, ranks.text()
        time.sleep(0.02)
    ranks.signal(signal.SIGTERM)  # as the launcher does to the other ranks
    assert ranks.wait(BOUND, alone=True) == [1] * world, ranks.text()
    assert (run / "stopped").read_text().startswith(f"{IMAGES}\n")
    assert not (run / "failed").exists()
    assert not (run / "done").exists()
    assert errors(ranks.text()) == []
    assert "was not drawn" not in ranks.text()
    harness.finish(outputs, recipe, world)
    tiny_runs.assert_undisturbed(undisturbed.folder, run)


def killed_at_the_end(harness: FaultHarness, world: int) -> None:
    """A kill in the final evaluation: the next start measures all of it, with equal figures."""
    recipe = "moco"
    undisturbed, outputs = harness.undisturbed_run(recipe, world, *PROBES), harness.new_outputs()
    ranks, run = harness.start(outputs, recipe, world, *LONG), outputs / "run"
    wait_for_the_end(ranks)
    ranks.kill()
    assert not any((run / name).exists() for name in ("done", "stopped", "failed"))
    harness.finish(outputs, recipe, world, *PROBES)
    assert tiny_runs.resumed(run) == [IMAGES]
    results = [json.loads((folder / "results.json").read_text()) for folder in (undisturbed.folder, run)]
    assert "probe/linear/y" in results[0]
    assert results[0] == results[1]
    tiny_runs.assert_undisturbed(undisturbed.folder, run)
