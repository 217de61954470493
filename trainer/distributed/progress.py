"""How far a rank has come in its steps, on its device.

A process only starts work on a GPU: it may be a step ahead, until something waits for a number. Where one GPU
hangs, all ranks' processes then stop at that same place. So an event behind each stage says what the GPU has
completed.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Position:
    """Where a rank is.

    stages: how many stages it has ended, of all steps. images: seen before the step. stage: the last one that
    it has ended. in_step: whether it is within a step. ahead: the last stage that its process has ended, in
    words, where the GPU has not yet completed that; the other fields are the GPU's then.
    """

    stages: int = 0
    images: int = 0
    stage: str = "start"
    in_step: bool = False
    ahead: str = ""

    def __str__(self) -> str:
        gpu = f" on its GPU (its process: {self.ahead})" if self.ahead else ""
        return f"had last finished {self.words()}{gpu}"

    def is_at(self, other: "Position") -> bool:
        """Whether the rank has not moved; how far its process is ahead does not matter."""
        return (self.stages, self.in_step) == (other.stages, other.in_step)

    def words(self) -> str:
        return f"'{self.stage}' of the step after {self.images:,} images"


class Event(Protocol):
    """What `torch.cuda.Event` does: a mark in the device's work, which is completed when that is."""

    def record(self) -> None: ...
    def query(self) -> bool: ...


def event_of(device: "torch.device") -> Callable[[], Event] | None:
    """What makes events of a device; None where nothing runs behind the process."""
    import torch

    return torch.cuda.Event if device.type == "cuda" else None


class Progress:
    """The stages of a rank, as its process ends them and as its device completes them.

    Neither waits for the device: a stage costs an event, and a look at those that are open. One thread calls
    `stage_done` and `step_done`; `position` may be read from another.

    Args:
        event: makes an event on the device; None: a stage is completed when the process has ended it.

    Attributes:
        since: when the device last completed a stage, or got work after it had none, in the seconds of
            `time.monotonic`.
    """

    def __init__(self, event: Callable[[], Event] | None = None):
        self._event = event
        self._process = self._completed = Position()
        self._open: deque[tuple[Event, Position]] = deque()
        self._spare: list[Event] = []
        self._lock = threading.Lock()
        self.since = time.monotonic()

    def stage_done(self, stage: str, images: int) -> None:
        """The process has ended a stage of the step that begins after `images` images."""
        position = Position(self._process.stages + 1, images, stage, in_step=True)
        event = None
        if self._event is not None:
            event = self._spare.pop() if self._spare else self._event()
            event.record()  # outside of the lock: where the queue of work is full, it waits for the device
        with self._lock:
            self._process = position
            if not self._open:
                self.since = time.monotonic()
            if event is not None:
                self._open.append((event, position))
                self._look()

    def step_done(self) -> None:
        """The process has ended the step."""
        with self._lock:
            self._process = replace(self._process, in_step=False)

    def position(self) -> Position:
        """That of the process, or of the device while it is behind: it is in a step then."""
        with self._lock:
            self._look()
            if not self._open:
                return self._process
            return replace(self._completed, in_step=True, ahead=self._process.words())

    def _look(self) -> None:
        # An error of the device is raised by the step itself; here it only means that nothing completes.
        with contextlib.suppress(RuntimeError):
            while self._open and self._open[0][0].query():
                event, self._completed = self._open.popleft()
                self._spare.append(event)
                self.since = time.monotonic()
