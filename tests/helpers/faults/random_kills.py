"""SIGKILLs at random moments, and the stages that they met."""

import random
import signal
import time
from typing import NamedTuple

from tests.helpers.faults import tiny_runs
from tests.helpers.faults.fault_harness import PATIENCE, FaultHarness, UndisturbedRun
from tests.helpers.faults.tiny_runs import BATCH, IMAGES
from tests.helpers.forked_ranks import ForkedRanks

KILLS_A_RUN = 4
IN_START = 0.2  # share of the kills that are aimed at the time before the first step


class Kill(NamedTuple):
    """The stage of a rank when it was killed (start, step, evaluation, save, finish), and who was killed."""

    stage: str
    images: int
    victim: str


def kill_at_random(
    harness: FaultHarness, recipe: str, world: int, kills: int, dice: random.Random
) -> tuple[list[Kill], int]:
    """Kills runs at random moments, each a few times, and finishes them; each must equal the undisturbed run.

    Returns the kills, and the number of runs that were compared.
    """
    undisturbed, done, runs = harness.undisturbed_run(recipe, world), [], 0
    while len(done) < kills:
        outputs, left, ended = harness.new_outputs(), min(KILLS_A_RUN, kills - len(done)), False
        while left and not ended:
            kill = kill_once(harness.start(outputs, recipe, world), undisturbed, dice)
            if kill:
                done.append(kill)
                left -= 1
                tiny_runs.newest(outputs / "run")
            ended = kill is None
        if not ended:
            harness.finish(outputs, recipe, world)
        tiny_runs.assert_undisturbed(undisturbed.folder, outputs / "run")
        runs += 1
    return done, runs


def kill_once(ranks: ForkedRanks, undisturbed: UndisturbedRun, dice: random.Random) -> Kill | None:
    """Kills one rank, and the others as a launcher would, or all at once; None: the run had ended before."""
    a_step = (undisturbed.seconds - undisturbed.starting) / (IMAGES // BATCH)
    victim = dice.choice([None, *range(len(ranks.processes))])
    if dice.random() < IN_START:
        ended = paused(ranks, dice.uniform(0, undisturbed.starting))
    else:
        ended = not arrived(ranks, dice.random()) or paused(ranks, dice.uniform(0, 2 * a_step))
    if not ended:
        ranks.signal(signal.SIGKILL, victim)
    statuses = ranks.wait(PATIENCE)
    if -signal.SIGKILL not in statuses:
        assert statuses == [0] * len(statuses), ranks.text()
        return None
    stage, images = ranks.stage(victim or 0)
    return Kill(stage, images, "all" if victim is None else f"rank {victim}")


def arrived(ranks: ForkedRanks, share: float) -> bool:
    """Waits until this share of the run is trained, and returns True; False: it has ended."""
    while ranks.running():
        stage, images = ranks.stage()
        if stage != "start" and images >= share * IMAGES:
            return True
        time.sleep(0.002)
    return False


def paused(ranks: ForkedRanks, seconds: float) -> bool:
    """Waits so many seconds; returns whether the run has ended."""
    time.sleep(seconds)
    return not ranks.running()
