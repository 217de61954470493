"""SIGKILLs at random moments, and where they fell."""

import random
import signal
import time
from typing import NamedTuple

from tests.helpers.faults import tiny_runs
from tests.helpers.faults.fault_stand import PATIENCE, Calm, Stand
from tests.helpers.faults.forked_ranks import Ranks
from tests.helpers.faults.tiny_runs import BATCH, IMAGES

KILLS_A_RUN = 4
IN_START = 0.2  # share of the kills that are to fall before the first step


class Kill(NamedTuple):
    """What a rank that was killed did (start, step, evaluation, save, finish), and who was killed."""

    stage: str
    images: int
    whom: str


def kill_at_random(
    stand: Stand, recipe: str, world: int, kills: int, dice: random.Random
) -> tuple[list[Kill], int]:
    """Kills runs at random moments; after a few kills each may end, with the bits and journal of a calm one.

    Returns the kills, and the number of runs that were compared.
    """
    calm, done, runs = stand.calm(recipe, world), [], 0
    while len(done) < kills:
        outputs, left, ended = stand.fresh(), min(KILLS_A_RUN, kills - len(done)), False
        while left and not ended:
            kill = kill_once(stand.start(outputs, recipe, world), calm, dice)
            if kill:
                done.append(kill)
                left -= 1
                tiny_runs.newest(outputs / "run")
            ended = kill is None
        if not ended:
            stand.finish(outputs, recipe, world)
        tiny_runs.assert_undisturbed(calm.run, outputs / "run")
        runs += 1
    return done, runs


def kill_once(ranks: Ranks, calm: Calm, dice: random.Random) -> Kill | None:
    """Kills one rank, and the others as a launcher would, or all at once; None: the run ended before."""
    a_step = (calm.seconds - calm.starting) / (IMAGES // BATCH)
    whom = dice.choice([None, *range(len(ranks.processes))])
    if dice.random() < IN_START:
        ended = paused(ranks, dice.uniform(0, calm.starting))
    else:
        ended = not arrived(ranks, dice.random()) or paused(ranks, dice.uniform(0, 2 * a_step))
    if not ended:
        ranks.signal(signal.SIGKILL, whom)
    statuses = ranks.wait(PATIENCE)
    if -signal.SIGKILL not in statuses:
        assert statuses == [0] * len(statuses), ranks.text()
        return None
    stage, images = ranks.stage(whom or 0)
    return Kill(stage, images, "all" if whom is None else f"rank {whom}")


def arrived(ranks: Ranks, share: float) -> bool:
    """Waits until steps are made and so much of the run is trained; False: it has ended."""
    while ranks.running():
        stage, images = ranks.stage()
        if stage != "start" and images >= share * IMAGES:
            return True
        time.sleep(0.002)
    return False


def paused(ranks: Ranks, seconds: float) -> bool:
    """Waits so long, or until the run has ended, and says whether it has."""
    time.sleep(seconds)
    return not ranks.running()
