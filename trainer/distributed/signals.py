"""Requests to stop: SIGTERM, SIGUSR1 (Slurm's warning), SIGHUP (a terminal goes away), Ctrl-C and a file.

All ranks agree to stop.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import torch

from trainer.distributed import collectives, variables

SAME_PRESS = 2.0  # seconds in which two SIGINT are one Ctrl-C: from the terminal, and from the launcher again
FILE_INTERVAL = 1.0  # seconds between two looks for the file
EARLIER = "STOP_REQUEST_FILE"
RAISE_AGAIN = 2.0  # seconds after which Stopped is raised again, in case a finalizer or callback swallowed it
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


def requests_stop(number: signal.Signals) -> bool:
    """Whether the signal is one to stop for. SIGHUP is not where it was ignored before, as under nohup."""
    return number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN


def earlier_request() -> str | None:
    """The signal that came to the job before this process had handlers, as `USR1`; None where none did."""
    with suppress(OSError):
        if path := os.environ.get(EARLIER):
            return Path(path).read_text().strip() or None
    return None


def status_of_stopped() -> int:
    """The exit status of a run that stopped on request and has saved: 1, or that in STATUS_OF_STOPPED.

    A job that reads the file `stopped` sets 0, of which launchers write no traceback.
    """
    return variables.whole_number("STATUS_OF_STOPPED", 1, 0)


class Stopped(BaseException):
    """A request to stop, raised where all is saved.

    No Exception: code that suppresses those must end as well.
    """


class StopRequest:
    """A request to stop that any rank may receive; all ranks stop at the same step.

    At every step the ranks reduce whether one of them has received a request; the result is read one step
    later, so that no step waits for it. A second Ctrl-C ends the process at once. `close` restores the
    handlers of the signals.

    A signal that came before there were handlers counts as well where STOP_REQUEST_FILE names a file that the
    job writes the signal's name to (slurm/node.sh).

    Args:
        file: a stop file; while it exists, a stop is requested.

    Attributes:
        received: the request that this rank received, as part of a message; None where there was none.
    """

    def __init__(self, file: Path | None = None):
        self.received: str | None = None
        self._file, self._last_look = file, 0.0
        self._raises, self._last_signal = False, 0.0
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: torch.distributed.Work | None = None
        self._handlers = {
            number: signal.signal(number, self._receive) for number in SIGNALS if requests_stop(number)
        }
        self._handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._raise)
        self.received = self.received or earlier_request()

    def _receive(self, number: int, _: object) -> None:
        again, self._last_signal = time.monotonic() - self._last_signal > SAME_PRESS, time.monotonic()
        if number == signal.SIGINT and self.received and again:
            raise KeyboardInterrupt
        first = self.received is None  # what comes later is a launcher that ends what the first one did not
        self.received = self.received or signal.Signals(number).name
        if first or again:
            self._raise()

    def _raise(self, *_: object) -> None:
        if self._raises:
            signal.setitimer(signal.ITIMER_REAL, RAISE_AGAIN)
            raise Stopped

    def request(self, why: str) -> None:
        """Requests a stop without a signal."""
        self.received = self.received or why

    def _look_for_file(self) -> None:
        """Requests a stop where the file exists; not at every step, for the sake of network file systems."""
        if self._file and time.monotonic() - self._last_look > FILE_INTERVAL:
            self._last_look = time.monotonic()
            with suppress(OSError):  # a network file system may be away for a moment
                if self._file.exists():
                    self.request(f"the file {self._file}")

    def raise_immediately(self) -> None:
        """From now on nothing can be lost: a request, also one received before, raises Stopped at once."""
        self._look_for_file()
        self._raises = True
        if self.received:
            raise Stopped

    def ignore(self) -> None:
        """From now on requests change nothing: little is left to do."""
        self._raises = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def should_stop(self) -> bool:
        """Whether some rank had received a request by the last call. Every rank calls it at every step."""
        self._look_for_file()
        if collectives.world_size() == 1:
            return self.received is not None
        stop = False
        if self._work is not None:
            self._work.wait()
            stop = bool(self._flag.numpy()[0])  # through numpy: no tensor operation in the step
        self._flag = torch.tensor([int(self.received is not None)], dtype=torch.int32)
        self._work = collectives.start_all_reduce(self._flag)
        return stop

    def close(self) -> None:
        if self._work is not None:
            with suppress(RuntimeError):  # the other ranks may have ended
                self._work.wait()
            self._work = None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
