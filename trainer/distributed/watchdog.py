"""Names a rank that hangs on every other rank, and ends the run instead of waiting for hours.

Ranks wait for each other in collectives: one that hangs stops all, and no rank knows which one. So a
thread of each rank publishes regularly, in the launcher's store, which stage of a step its rank has ended
last on its device; where no stage ends for too long, each rank reads what the others have published.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field

from trainer.distributed import collectives
from trainer.distributed.progress import Event, Position, Progress

STATUS = 3  # exit status of a process that the watchdog ends
FIRST_STEP = 6  # times the limit: the first step chooses kernels and opens connections
ON_HANG_TIMEOUT = 5.0  # seconds for `on_hang`
CLOSED = -1  # beats of a rank that has closed its watchdog


@dataclass(frozen=True)
class Report:
    """What a rank published last: beats count its reports; one that has published nothing has 0 of them."""

    beats: int = 0
    position: Position = field(default_factory=lambda: Position(in_step=True))


class Watchdog:
    """Watches the steps of a run on several ranks; on one process it does nothing.

    Args:
        limit: seconds that a stage of a step may take, of the first step FIRST_STEP times as many; 0: no
            limit.
        on_hang: called with the line that names the ranks that hang, after it was printed and before the
            process ends with status 3. It may hang itself, on the same disk for example.
        event: makes an event of the device that runs behind this process (`event_of`); None: none does.
    """

    def __init__(
        self, limit: float, on_hang: Callable[[str], None], event: Callable[[], Event] | None = None
    ):
        self.limit, self._on_hang = limit, on_hang
        watched = limit and collectives.world_size() > 1
        self._progress = Progress(event if watched else None)
        self._first_step, self._beats = True, 0
        self._closing = threading.Event()
        self._thread = None
        if watched:
            self._interval = min(30.0, max(0.2, limit / 10))
            self._store = collectives.store()
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()

    def stage_done(self, stage: str, images: int) -> None:
        """This rank has ended a stage of the step that begins after `images` images.

        All ranks end the same stages in the same order: the rank with the fewest is the slowest.
        """
        self._progress.stage_done(stage, images)

    def step_done(self) -> None:
        """The step has ended and is logged; saving and evaluating may take any time, while all ranks live."""
        self._progress.step_done()
        self._first_step = False

    def close(self) -> None:
        """Ends the watch; this rank publishes no more."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._beats = CLOSED
            self._publish()

    def _run(self) -> None:
        while not self._closing.wait(self._interval):
            self._publish()
            position = self._progress.position()
            waited = time.monotonic() - self._progress.since
            if waited > (FIRST_STEP * self.limit if self._first_step else self.limit):
                culprits = self._culprits()
                if culprits is not None and position.is_at(self._progress.position()):
                    self._end(f"no stage of a step has ended for {waited:.0f} s: {culprits}")

    def _end(self, line: str) -> None:
        try:
            print(f"error: rank {collectives.rank()}: {line}", file=sys.stderr, flush=True)
            thread = threading.Thread(target=self._on_hang, args=(line,), daemon=True)
            thread.start()
            thread.join(ON_HANG_TIMEOUT)
            time.sleep(2 * self._interval)  # the first process that ends makes the launcher end the others
        finally:
            os._exit(STATUS)

    def _publish(self) -> None:
        self._beats += self._beats != CLOSED
        with contextlib.suppress(Exception):  # the store ends with the launcher
            report = [self._beats, *astuple(self._progress.position())]
            self._store.set(f"watchdog/{collectives.rank()}", json.dumps(report))

    def _culprits(self) -> str | None:
        """The ranks that the others wait for, in words; None where they live and save or evaluate."""
        before = self._reports()
        for _ in range(3):
            if self._closing.wait(self._interval):
                return None
            self._publish()
        now = self._reports()
        silent = [rank for rank in now if now[rank].beats == before[rank].beats != CLOSED]
        if collectives.rank() in silent:
            return "the store of the launcher, or of rank 0, does not answer"
        if silent:
            return ", ".join(
                f"rank {rank} does not answer and {now[rank].position} when last heard of" for rank in silent
            )
        if not self._progress.position().in_step:
            return None
        fewest = min(report.position.stages for report in now.values())
        slowest = [rank for rank, report in now.items() if report.position.stages == fewest]
        if not all(now[rank].position.in_step for rank in slowest):
            return None
        if len(slowest) == len(now):
            return f"every rank {now[slowest[0]].position} and waits for the others"
        return (
            ", ".join(f"rank {rank} {now[rank].position}" for rank in slowest) + " and the others are further"
        )

    def _reports(self) -> dict[int, Report]:
        """The last report of each rank."""
        reports = {}
        for rank in range(collectives.world_size()):
            reports[rank] = Report()
            with contextlib.suppress(Exception):
                if self._store.check([f"watchdog/{rank}"]):
                    beats, *position = json.loads(self._store.get(f"watchdog/{rank}"))
                    reports[rank] = Report(beats, Position(*position))
        return reports
