"""What befalls a run in its final evaluation, when all of its training is saved."""

import json
import signal
import time

from tests.helpers.faults import tiny_runs
from tests.helpers.faults.fault_stand import PATIENCE, Stand
from tests.helpers.faults.forked_ranks import Ranks
from tests.helpers.faults.kinds_of_faults import BOUND, errors
from tests.helpers.faults.tiny_runs import IMAGES

PROBES = ["evaluate.at_end=true", "evaluate.controls=false", "evaluate.mlp=null"]
LONG = [*PROBES[:2], "evaluate.mlp.epochs=100000"]  # on each rank some probes that take minutes


def wait_for_the_end(ranks: Ranks) -> None:
    """Until all ranks are two seconds into it."""
    deadline = time.monotonic() + PATIENCE
    while {ranks.stage(number)[0] for number in range(len(ranks.processes))} != {"finish"}:
        assert ranks.running(), ranks.text()
        assert time.monotonic() < deadline, ranks.text()
        time.sleep(0.02)
    time.sleep(2)
    assert ranks.statuses() == [None] * len(ranks.processes), ranks.text()


def told_to_stop_at_the_end(stand: Stand, world: int, rank: int | None, *more: str, **hooks: object) -> None:
    """Told to stop in the final evaluation, when all is saved: nobody measures on, and nothing has failed."""
    recipe = "moco"
    calm, outputs = stand.calm(recipe, world), stand.fresh()
    ranks, run = stand.start(outputs, recipe, world, *more, **hooks), outputs / "run"
    wait_for_the_end(ranks)
    ranks.signal(signal.SIGTERM, rank)
    deadline = time.monotonic() + BOUND
    while rank is not None and ranks.statuses()[rank] is None:
        assert time.monotonic() < deadline, ranks.text()
        time.sleep(0.02)
    ranks.signal(signal.SIGTERM)  # as the launcher does to those that are left
    assert ranks.wait(BOUND, alone=True) == [1] * world, ranks.text()
    assert (run / "stopped").read_text().startswith(f"{IMAGES}\n")
    assert not (run / "failed").exists()
    assert not (run / "done").exists()
    assert errors(ranks.text()) == []
    assert "was not drawn" not in ranks.text()
    stand.finish(outputs, recipe, world)
    tiny_runs.assert_undisturbed(calm.run, run)


def killed_at_the_end(stand: Stand, world: int) -> None:
    """The next start measures all of it, and every figure is that of a run that nothing happened to."""
    recipe = "moco"
    calm, outputs = stand.calm(recipe, world, *PROBES), stand.fresh()
    ranks, run = stand.start(outputs, recipe, world, *LONG), outputs / "run"
    wait_for_the_end(ranks)
    ranks.kill()
    assert not any((run / name).exists() for name in ("done", "stopped", "failed"))
    stand.finish(outputs, recipe, world, *PROBES)
    assert tiny_runs.resumed(run) == [IMAGES]
    results = [json.loads((folder / "results.json").read_text()) for folder in (calm.run, run)]
    assert "probe/linear/y" in results[0]
    assert results[0] == results[1]
    tiny_runs.assert_undisturbed(calm.run, run)
