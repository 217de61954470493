"""Runs that continue on other numbers of ranks and under other engines, after a fault at each start."""

import json
import signal
import time
from pathlib import Path
from typing import NamedTuple

from tests.helpers.faults.fault_harness import BOUND, KILLED, PATIENCE, FaultHarness, UndisturbedRun
from tests.helpers.faults.fault_scenarios import ended_but
from tests.helpers.faults.tiny_runs import BATCH, CLOCKS, IMAGES, figures, weights


class Start(NamedTuple):
    """One start of an elastic run, and the fault that ends it after `until` images; None: it ends well.

    fault: SIGKILL before that step ("kill") or in the first save of the start ("save"), a rank that hangs in
    that step ("hang"), or SIGTERM to all once it has begun ("stop").
    """

    world: int
    engine: str
    until: int | None
    victim: int = 0
    fault: str = "kill"


def elastic(
    harness: FaultHarness, recipe: str, starts: list[Start], *more: str
) -> tuple[UndisturbedRun, Path]:
    """Every start but the last meets a fault; the samples in all global batches must be the same.

    Returns what to compare: the undisturbed run on the ranks of the first start, and the folder of this run.
    """
    undisturbed, outputs, logs = (
        harness.undisturbed_run(recipe, starts[0].world, *more),
        harness.new_outputs(),
        [],
    )
    for world, engine, until, victim, fault in starts:
        options = {"engine": engine, "record": True}
        at = {"rank": victim, "images": until}
        if until is None:
            ranks = harness.finish(outputs, recipe, world, *more, **options)
        elif fault == "kill":
            ranks = harness.start(outputs, recipe, world, *more, **options, die=at)
            assert ranks.wait(PATIENCE)[victim] == KILLED, ranks.text()
        elif fault == "save":
            die = {"rank": victim, "phase": "part half written", "time": 1}
            ranks = harness.start(outputs, recipe, world, *more, **options, die=die)
            assert ranks.wait(PATIENCE)[victim] == KILLED, ranks.text()
        elif fault == "hang":
            short = ("step_timeout=5", "data.retry_seconds=0")
            ranks = harness.start(
                outputs, recipe, world, *more, *short, **options, hang=at | {"where": "data"}
            )
            assert f"rank {victim} had last finished" in ended_but(victim, ranks)
        else:
            ranks = harness.start(outputs, recipe, world, *more, **options, slow=0.1)
            while ranks.stage(0)[1] < until:
                assert ranks.running(), ranks.text()
                time.sleep(0.02)
            ranks.signal(signal.SIGTERM)
            assert ranks.wait(BOUND, alone=True) == [1] * world, ranks.text()
        name = engine if world > 1 else "single process"
        assert f"{world} rank" in ranks.text(0)
        assert f"{name}, cpu" in ranks.text(0)
        logs.append(ranks.logs)
    assert samples([undisturbed.logs]) == samples(logs)
    return undisturbed, outputs / "run"


def samples(logs: list[Path]) -> dict[tuple[int, int, int], int]:
    """(images seen before the batch, view, position in the run) -> sample's id, also of replayed steps."""
    ids_at: dict[tuple[int, int, int], int] = {}
    for path in (path for folder in logs for path in folder.glob("ids-*.jsonl")):
        for line in path.read_text().splitlines():
            seen, positions, ids = json.loads(line)
            for view, pairs in enumerate(zip(positions, ids, strict=True)):
                for position, sample in zip(*pairs, strict=True):
                    assert ids_at.setdefault((seen, view, position), sample) == sample
    assert {seen for seen, *_ in ids_at} == set(range(0, IMAGES, BATCH))
    return ids_at


def assert_close(
    undisturbed: Path, other: Path, until: int, tolerance: float, apart: tuple[str, ...] = ()
) -> None:
    """All figures but `apart` up to so many images, each once; with `until=IMAGES` the final weights, too."""
    one, two = (figures(run, "metric") for run in (undisturbed, other))
    assert one.keys() == two.keys()
    for key, value in one.items():
        if key[0] not in (*CLOCKS, *apart) and key[1] <= until:
            assert abs(two[key] - value) <= tolerance * max(1.0, abs(value)), (key, value, two[key])
    if until == IMAGES:
        one, two = weights(undisturbed), weights(other)
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            assert (two[name].double() - tensor.double()).abs().max() <= tolerance, name
