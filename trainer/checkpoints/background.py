"""A checkpoint written beside the next steps: one at a time, and no error is lost."""

import threading
from collections.abc import Callable

from data_pipelines.common.errors import UserError
from trainer.distributed import collectives


class BackgroundWriter:
    """Runs one write at a time, in a thread.

    Args:
        alarm: called from that thread when a write fails, so that training can stop soon; `wait` raises the
            error.
        limit: seconds that `wait` waits; None: no limit.
    """

    def __init__(self, alarm: Callable[[], None], limit: float | None = None):
        self._alarm, self._limit = alarm, limit
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def in_progress(self) -> bool:
        """Whether `wait` has not been called since the last `start`."""
        return self._thread is not None

    def start(self, write: Callable[[], object]) -> None:
        """Begins a write, after `wait` for the one before."""
        assert not self.in_progress
        self._thread = threading.Thread(target=self._run, args=(write,), name="saving", daemon=True)
        self._thread.start()

    def _run(self, write: Callable[[], object]) -> None:
        try:
            write()
        except BaseException as error:
            self._error = error
            self._alarm()

    def wait(self) -> None:
        """Waits for the write in progress, if there is one.

        Raises:
            UserError: it cannot be written, or not within the limit, or another rank's part did not come.
        """
        if self._thread is not None:
            self._thread.join(self._limit)
            if self._thread.is_alive():
                raise UserError(
                    f"rank {collectives.rank()} has not written its part of the checkpoint within "
                    f"{self._limit:g} s; look at that machine's disk, and run the same command again"
                )
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def abandon(self, say: Callable[[str], None], timeout: float | None) -> None:
        """Waits where training has ended or failed: an error here is reported by `say` and not raised.

        Args:
            timeout: seconds; other ranks' parts may never come. None: no limit.
        """
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                say(f"warning: the last checkpoint was still being written after {timeout:g} s: given up")
                return
        try:
            self.wait()
        except Exception as error:
            say(f"warning: the last checkpoint was not saved: {error}")
