"""Stopping on request: SIGTERM, SIGUSR1 (Slurm's warning), Ctrl-C and a file, agreed on by all ranks."""

import signal
import time
from contextlib import suppress
from pathlib import Path

import torch

from trainer.distributed import collectives

SAME_PRESS = 2.0  # seconds: a launcher hands on the Ctrl-C that the terminal has given to all already
LOOK = 1.0  # seconds between two looks for the file
LOST = 2.0  # seconds after which Stopped is raised again, where it got lost in a finalizer or a callback
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(BaseException):
    """Told to stop where all is saved. No Exception: what makes light of those must end as well."""


class StopRequest:
    """Asks all ranks at every step whether any was told to stop; the answer is read one step later.

    So the question costs no step a wait, and all ranks stop at the same one. A second Ctrl-C ends the
    process at once. `close` gives the signals back.

    Args:
        file: a stop file; that it is there is a request to stop.
    """

    def __init__(self, file: Path | None = None):
        self.received: str | None = None
        self._file, self._looked = file, 0.0
        self._at_once, self._last = False, 0.0
        self._ballot, self._work = torch.zeros(1, dtype=torch.int32), None
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._stop)

    def _receive(self, number: int, _) -> None:
        again, self._last = time.monotonic() - self._last > SAME_PRESS, time.monotonic()
        if number == signal.SIGINT and self.received and again:
            raise KeyboardInterrupt
        first, self.received = self.received is None, signal.Signals(number).name
        if first or again:
            self._stop()

    def _stop(self, *_) -> None:
        if self._at_once:
            signal.setitimer(signal.ITIMER_REAL, LOST)
            raise Stopped

    def ask(self, why: str) -> None:
        """A request to stop that is no signal."""
        self.received = self.received or why

    def _look(self) -> None:
        """Asks for a stop where the file is there; a network's file system is not asked at every step."""
        if self._file and time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            with suppress(OSError):  # a network's file system may be away for a moment
                if self._file.exists():
                    self.ask(f"the file {self._file}")

    def raise_immediately(self) -> None:
        """From now on nothing can be lost: a request to stop, also one that came before, raises Stopped."""
        self._look()
        self._at_once = True
        if self.received:
            raise Stopped

    def ignore(self) -> None:
        """From now on a request to stop changes nothing: what is left to do is little."""
        self._at_once = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def should_stop(self) -> bool:
        """Whether some rank had been told to stop at the step before; every rank asks at every step."""
        self._look()
        if collectives.world_size() == 1:
            return self.received is not None
        answer = False
        if self._work is not None:
            self._work.wait()
            answer = bool(self._ballot.numpy()[0])  # through numpy: no tensor operation in the step
        self._ballot = torch.tensor([int(self.received is not None)], dtype=torch.int32)
        self._work = collectives.start_all_reduce(self._ballot)
        return answer

    def close(self) -> None:
        if self._work is not None:
            with suppress(RuntimeError):  # the others may be gone
                self._work.wait()
            self._work = None
        for number, handler in self._before.items():
            signal.signal(number, handler)
