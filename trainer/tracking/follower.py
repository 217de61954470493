"""A thread that delivers the journal to MLflow while training writes it, through any outage."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from trainer.tracking import mlflow_store, outage
from trainer.tracking.address import sync_command
from trainer.tracking.delivery import Delivery

POLL = 1.0  # seconds
LONGEST_WAIT = 30.0  # seconds between two tries during an outage
TRIES_AT_CLOSE = 3


class Follower:
    """A daemon thread that delivers a run's journal while it is written. For rank 0 only.

    Nothing is ever raised into training. `report` is called from that thread with lines for the console: when
    an outage begins, when it ends, and for a record that is refused.
    """

    def __init__(
        self,
        run_folder: Path,
        uri: str,
        experiment: str,
        run_name: str,
        report: Callable[[str], object] = print,
    ):
        mlflow_store.configure()
        self._delivery = Delivery(run_folder, uri, experiment, run_name, report)
        self._report = report
        self._closing = threading.Event()
        self._outage_since: float | None = None
        self._complete = False
        self._thread = threading.Thread(target=self._follow, name="tracking", daemon=True)
        self._thread.start()

    def close(self, timeout: float = 30.0) -> bool:
        """Delivers the rest and ends the thread; returns whether all is delivered.

        Otherwise reports the command that delivers the rest. Waits `timeout` seconds at most, and less where
        MLflow does not answer. May be called twice.
        """
        already = self._closing.is_set()
        self._closing.set()
        self._thread.join(timeout)
        if not self._complete and not already:
            self._report(
                f"warning: {self._delivery.journal} is not wholly in MLflow at {self._delivery.address}; "
                f"deliver the rest with: {sync_command(self._delivery.folder, self._delivery.uri)}"
            )
        return self._complete

    def _follow(self) -> None:
        failures = failures_at_close = 0
        while True:
            closing, before = self._closing.is_set(), self._delivery.offset
            try:
                self._delivery.deliver()
                failures = 0
                self._answered()
                if closing:
                    self._complete = not self._delivery.aside
                    break
            except Exception as error:
                # Where something was delivered, the waits start from the shortest again.
                failures = failures + 1 if self._delivery.offset == before else 1
                failures_at_close += closing
                # The first failure may be a connection that the server has closed, or a locked file: try
                # again.
                if failures > 1:
                    self._failed(error)
                if failures_at_close == TRIES_AT_CLOSE:
                    break
            wait = min(LONGEST_WAIT, 0.25 * 2**failures) if failures else POLL
            if closing:
                time.sleep(min(wait, 1.0))
            else:
                self._closing.wait(wait)
        self._delivery.close()

    def _failed(self, error: Exception) -> None:
        if self._outage_since is None:
            self._outage_since = time.time()
            later = sync_command(self._delivery.folder, self._delivery.uri)
            self._report(
                f"warning: no tracking since {time.strftime('%X')}: MLflow at {self._delivery.address}: "
                f"{outage.reason(error)}; training goes on, the journal keeps everything until MLflow "
                f"answers, or is delivered later by: {later}"
            )

    def _answered(self) -> None:
        if self._outage_since is not None:
            seconds = time.time() - self._outage_since
            self._outage_since = None
            self._report(
                f"tracking again after {seconds:.0f} s: MLflow at {self._delivery.address} has everything"
            )
