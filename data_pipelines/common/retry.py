"""Retries: what fails for a while is tried again, for as long as the user allows."""

import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from data_pipelines.common.errors import UserError

FIRST, LONGEST = 0.1, 5.0  # seconds between two attempts: the first pause, doubled up to the longest

Value = TypeVar("Value")


class TransientError(Exception):
    """A failure that may pass by itself.

    Args:
        subject: the file or address, for messages.
        what: what is wrong with it: "{subject}{what}" is a sentence.
        advice: what to do where it does not pass.
        reached: bytes that have arrived all the same; where they grow, the time of the retry begins anew.
    """

    def __init__(self, subject: str, what: str, advice: str, reached: int = 0):
        super().__init__(f"{subject}{what}")
        self.subject, self.advice, self.reached = subject, advice, reached


class Interrupted(Exception):
    """The wait was ended from outside: the run stops."""


def to_stderr(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


class Retry:
    """Calls what may fail, again and again while it raises TransientError, with growing pauses.

    Args:
        seconds: for which it is tried again; 0: not at all.
        warn: receives one line when a failure begins and one when it is over.

    `failing` is true while attempts fail. `stop`, from any thread, ends all waiting at once and for good.
    """

    def __init__(self, seconds: float = 0.0, warn: Callable[[str], None] = to_stderr):
        self.seconds, self.warn = seconds, warn
        self.stopped = threading.Event()
        self.failing = False

    def stop(self) -> None:
        self.stopped.set()

    def __call__(self, attempt: Callable[[], Value]) -> Value:
        """Returns what `attempt()` returns.

        Raises:
            UserError: it raised TransientError for `seconds`. What else it raises passes at once.
            Interrupted: `stop` was called.
        """
        try:
            return attempt()
        except TransientError as error:
            return self.again(attempt, error)

    def again(self, attempt: Callable[[], Value], failure: TransientError) -> Value:
        """The same where the first attempt has been made, and failed so."""
        began = since = time.monotonic()
        pause, reached = FIRST, failure.reached
        if self.seconds:
            self.warn(f"{failure}; trying again for {self.seconds:g} s")
        self.failing = True
        try:
            while (left := since + self.seconds - time.monotonic()) > 0:
                if self.stopped.wait(min(pause, left)):
                    raise Interrupted
                pause = min(2 * pause, LONGEST)
                try:
                    value = attempt()
                except TransientError as error:
                    failure = error
                    if error.reached > reached:  # it comes in pieces, but it comes
                        reached, since, pause = error.reached, time.monotonic(), FIRST
                else:
                    self.warn(f"{failure.subject} can be read again, after {time.monotonic() - began:.1f} s")
                    return value
        finally:
            self.failing = False
        tried = f", tried again for {self.seconds:g} s" if self.seconds else ""
        raise UserError(f"{failure}{tried}; {failure.advice}") from None
