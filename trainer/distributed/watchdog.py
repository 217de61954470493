"""A rank that hangs is named on every other rank, and the run ends instead of waiting for hours.

Ranks wait for each other in collectives, so that one that hangs stops all, and none can say which it is.
Here a thread of each rank tells the launcher's store now and then which stage of a step its rank has finished
last; where no stage ends for too long, each rank reads what the others have told.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable

from trainer.distributed import collectives

STATUS = 3  # of a process that this ends
FIRST = 6  # in the first step kernels are chosen and connections made
LAST_WORDS = 5.0  # seconds for `tell`
LEFT = -1  # beats of a rank that has closed its watchdog


class Watchdog:
    """Watches the steps of a run on several ranks; on one process it does nothing.

    Args:
        limit: seconds that a stage of a step may take, of the first step FIRST times as many; 0: any time.
        tell: takes the line that names the ranks that hang, once it was printed and before the process ends
            with status 3; it may hang itself, on the same disk for example.
    """

    def __init__(self, limit: float, tell: Callable[[str], None]):
        self.limit, self._tell = limit, tell
        self._at = (0, 0, "start", False)  # stages finished, images, the last stage, whether within a step
        self._since, self._armed, self._beats = time.monotonic(), False, 0
        self._closing = threading.Event()
        self._thread = None
        if limit and collectives.world_size() > 1:
            self._beat = min(30.0, max(0.2, limit / 10))
            self._store = collectives.store()
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()

    def finished(self, stage: str, images: int) -> None:
        """This rank has finished a stage of the step that begins after `images` images.

        All ranks finish the same stages in the same order; how many tells who is behind.
        """
        self._at, self._since = (self._at[0] + 1, images, stage, True), time.monotonic()

    def rest(self) -> None:
        """The step is over and logged; saving and measuring may take their time, while all ranks answer."""
        self._at, self._armed = (*self._at[:3], False), True

    def close(self) -> None:
        """This rank needs no watch any more, and will not answer."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._beats = LEFT
            self._publish()

    def _run(self) -> None:
        while not self._closing.wait(self._beat):
            self._publish()
            at, waited = self._at, time.monotonic() - self._since
            if waited > (self.limit if self._armed else FIRST * self.limit):
                behind = self._behind()
                if behind is not None and at == self._at:
                    self._end(f"no stage of a step has ended for {waited:.0f} s: {behind}")

    def _end(self, line: str) -> None:
        try:
            print(f"error: rank {collectives.rank()}: {line}", file=sys.stderr, flush=True)
            last = threading.Thread(target=self._tell, args=(line,), daemon=True)
            last.start()
            last.join(LAST_WORDS)
            time.sleep(2 * self._beat)  # the first that ends makes the launcher end the others
        finally:
            os._exit(STATUS)

    def _publish(self) -> None:
        self._beats += self._beats != LEFT
        with contextlib.suppress(Exception):  # the store goes with the launcher
            self._store.set(f"watchdog/{collectives.rank()}", json.dumps([self._beats, *self._at]))

    def _behind(self) -> str | None:
        """Who keeps the others waiting; None where it is a rank that saves or measures, and lives."""
        before = self._told()
        for _ in range(3):
            if self._closing.wait(self._beat):
                return None
            self._publish()
        now = self._told()
        silent = [rank for rank in now if now[rank][0] == before[rank][0] != LEFT]
        if collectives.rank() in silent:
            return "the store of the launcher, or of rank 0, does not answer"
        if silent:
            told = [
                f"rank {rank} does not answer and {place(now[rank])} when last heard of" for rank in silent
            ]
            return ", ".join(told)
        if not self._at[3]:
            return None
        least = min(state[1] for state in now.values())
        slow = [rank for rank in now if now[rank][1] == least]
        if not all(now[rank][4] for rank in slow):
            return None
        if len(slow) == len(now):
            return f"every rank {place(now[slow[0]])} and waits for the others"
        return ", ".join(f"rank {rank} {place(now[rank])}" for rank in slow) + " and the others are further"

    def _told(self) -> dict[int, list]:
        """[beats, *what `_at` holds] of each rank; of one that never told, zero beats."""
        told = {}
        for rank in range(collectives.world_size()):
            told[rank] = [0, 0, 0, "start", True]
            with contextlib.suppress(Exception):
                if self._store.check([f"watchdog/{rank}"]):
                    told[rank] = json.loads(self._store.get(f"watchdog/{rank}"))
        return told


def place(state: list) -> str:
    """Where a rank is, in words."""
    return f"had last finished '{state[3]}' of the step after {state[2]:,} images"
