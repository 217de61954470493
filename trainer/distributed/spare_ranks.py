"""Ranks that a batch has no groups for, where nobody asked for so many.

`accelerate launch` without --num_processes starts a rank on each GPU of the machine. Not every batch divides
over eight, and the first command that a person types should train. So as many ranks go on as it divides over.
"""

import os
from collections.abc import Callable

from data_pipelines.common.errors import UserError
from trainer.distributed import launcher, variables


def leaves(check: Callable[[int], None]) -> bool:
    """Whether this rank is to leave before anything is set up; the others find a smaller world.

    It leaves where the number of ranks is accelerate's choice, not that of its options or configuration file,
    all are on one machine, and the batch divides over fewer. A number that was asked for is kept, and refused
    where it does not divide.

    Args:
        check: raises UserError where the batch does not divide over a number of ranks.

    Raises:
        UserError: the environment's numbers of ranks are wrong.
    """
    world = variables.world_size()
    mistake = _mistake(check, world)
    if (
        world == 1
        or world != variables.local_world_size()
        or mistake is None
        or launcher.ranks_were_asked_for()
    ):
        return False
    staying = next((ranks for ranks in range(world - 1, 0, -1) if _mistake(check, ranks) is None), None)
    if staying is None:
        return False
    rank = variables.whole_number("RANK", 0, 0)
    if rank == 0:
        train = f"{staying} train{'s' * (staying == 1)}"
        print(f"note: of {world} ranks, one a GPU, {train} and the others leave: {mistake}", flush=True)
    os.environ |= {"WORLD_SIZE": str(staying), "LOCAL_WORLD_SIZE": str(staying)}
    if staying == 1 and rank == 0:
        for name in ("RANK", "LOCAL_RANK"):  # accelerate would make a group of one
            del os.environ[name]
    return rank >= staying


def _mistake(check: Callable[[int], None], ranks: int) -> UserError | None:
    try:
        check(ranks)
    except UserError as mistake:
        return mistake
    return None
