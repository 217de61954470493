"""What fails for a while is tried again, for as long as the user has patience."""

import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from data_pipelines.common.errors import UserError

FIRST, LONGEST = 0.1, 5.0  # seconds between two attempts: the first pause, doubled up to the longest

Value = TypeVar("Value")


class TransientError(Exception):
    """What may pass by itself.

    Args:
        subject: the file or address, for messages.
        what: what is the matter with it: "{subject}{what}" is a sentence.
        advice: what to do where it does not pass.
        reached: bytes that are here all the same; where they grow, the trouble counts as a new one.
    """

    def __init__(self, subject: str, what: str, advice: str, reached: int = 0):
        super().__init__(f"{subject}{what}")
        self.subject, self.advice, self.reached = subject, advice, reached


class Interrupted(Exception):
    """Whoever waited was told to stop."""


def to_stderr(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


class Retry:
    """Calls what may fail, again and again while it does, with growing pauses.

    Args:
        seconds: how long; 0: not at all.
        warn: takes one line when trouble begins and one when it is over.

    `stop`, from any thread, ends all waiting at once and for good.
    """

    def __init__(self, seconds: float = 0.0, warn: Callable[[str], None] = to_stderr):
        self.seconds, self.warn = seconds, warn
        self.stopped = threading.Event()
        self.failing = False

    def stop(self) -> None:
        self.stopped.set()

    def __call__(self, attempt: Callable[[], Value]) -> Value:
        """What `attempt()` gives.

        Raises:
            UserError: it raised Trouble for so long; or what else it raises, at once.
            Interrupted: `stop` was called.
        """
        try:
            return attempt()
        except TransientError as trouble:
            return self.again(attempt, trouble)

    def again(self, attempt: Callable[[], Value], trouble: TransientError) -> Value:
        """The same where the first attempt has been made, and met this trouble."""
        began = since = time.monotonic()
        pause, reached = FIRST, trouble.reached
        if self.seconds:
            self.warn(f"{trouble}; trying again for {self.seconds:g} s")
        self.failing = True
        try:
            while (left := since + self.seconds - time.monotonic()) > 0:
                if self.stopped.wait(min(pause, left)):
                    raise Interrupted
                pause = min(2 * pause, LONGEST)
                try:
                    value = attempt()
                except TransientError as again:
                    trouble = again
                    if again.reached > reached:  # it comes in pieces, but it comes
                        reached, since, pause = again.reached, time.monotonic(), FIRST
                else:
                    self.warn(f"{trouble.subject} can be read again, after {time.monotonic() - began:.1f} s")
                    return value
        finally:
            self.failing = False
        tried = f", tried again for {self.seconds:g} s" if self.seconds else ""
        raise UserError(f"{trouble}{tried}; {trouble.advice}") from None
