"""A thread that brings files into the cache in the order in which they will be read, ahead of the reader."""

import threading
import time
from concurrent import futures

from data_pipelines.common.retry import Interrupted, Retry, TransientError
from data_pipelines.remote.cache import File, Full, ShardCache
from data_pipelines.remote.transfer import TIMEOUT

BUSY = 0.05  # seconds until a file is looked at again that another process fetches
REST = 5.0  # and one that could not be fetched, while nobody waits for it


class Fetcher:
    """Fetches what was announced, and before that what somebody waits for and nobody announced.

    A file that fails holds up no other. What was announced is fetched once: others share the room, and where
    they remove it again, it comes when somebody waits for it or with the next announcement; two that fetch
    ahead would otherwise push each other's files out for ever. The thread starts when it is needed; after
    `close` as well.
    """

    def __init__(self, cache: ShardCache):
        self.cache = cache
        self._changed = threading.Condition()
        self._now: list[File] = []
        self._soon: list[File] = []
        self._had: set[File] = set()  # brought since the last announcement
        self._asked: dict[File, futures.Future] = {}
        self._resting: dict[File, float] = {}  # until when
        self._busy: dict[File, tuple[float, int]] = {}  # since when another has been at it, and got how far
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def ahead(self, now: list[File], soon: list[File]) -> None:
        """What is read now, in order, and what comes next; the former is never removed for the latter."""
        with self._changed:
            if (now, soon) != (self._now, self._soon):
                self._now, self._soon = now, soon
                self._resting.clear()
                self._had.clear()
                self._wake()

    def get(self, file: File, patience: Retry) -> None:
        """Waits until a file is in the cache, or one attempt at it has failed.

        Raises:
            Trouble: it may help to ask again.
            UserError: it will not.
            Interrupted: `patience` was stopped, or `close` called.
        """
        while not self.cache.has(file):
            with self._changed:
                future = self._asked.setdefault(file, futures.Future())
                self._resting.pop(file, None)
                self._wake()
            while not futures.wait([future], 0.1).done:
                if patience.stopped.is_set():
                    raise Interrupted
            future.result()
        self.cache.touch(file)

    def close(self) -> None:
        """Ends the thread. It is not waited for long: a read from a server that is silent takes its time."""
        with self._changed:
            self._stop.set()
            for future in self._asked.values():
                future.set_exception(Interrupted())
            self._asked.clear()
            self._changed.notify_all()
            thread, self._thread = self._thread, None
        if thread:
            thread.join(1.0)

    def _wake(self) -> None:
        if self._thread is None:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._stop,), name="fetch", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self, stop: threading.Event) -> None:
        while True:
            with self._changed:
                while not stop.is_set() and (file := self._next(now := time.monotonic())) is None:
                    self._changed.wait(self._pause(now))
                if stop.is_set():
                    return
                keep = self._keep(file)
            mistake = None
            try:
                done = self.cache.bring(file, keep, stop)
            except Full:
                done, mistake = True, self._full(file)
            except Interrupted:
                return
            except Exception as error:  # for whoever waits for the file
                done, mistake = True, error
            if not done:
                done, mistake = self._held_up(file)
            with self._changed:
                if not stop.is_set():
                    self._note(file, done, mistake)

    def _note(self, file: File, done: bool, mistake: Exception | None) -> None:
        """The outcome of an attempt; not done: another process is at it."""
        if not done or mistake:
            self._resting[file] = time.monotonic() + (REST if done else BUSY)
        if done:
            self._busy.pop(file, None)
        if done and not mistake:
            self._had.add(file)
        if done and (future := self._asked.pop(file, None)):
            future.set_exception(mistake) if mistake else future.set_result(None)

    def _next(self, now: float) -> File | None:
        """What to fetch: of what was announced the first, but before that what came unannounced."""
        announced = [*self._now, *self._soon]
        for file in [*(file for file in self._asked if file not in announced), *announced]:
            wanted = file in self._asked or (file not in self._had and not self.cache.has(file))
            if wanted and self._resting.get(file, now) <= now:
                return file
        return None

    def _pause(self, now: float) -> float | None:
        """Seconds until a file has rested that had not at `now`, when `_next` looked; None where all have."""
        pauses = [until - now for until in self._resting.values()]
        return min((pause for pause in pauses if pause > 0), default=None)

    def _keep(self, file: File) -> list[set[str]]:
        """What is not removed for a file, and what if that leaves no room."""
        now, soon = {one.name for one in self._now}, {one.name for one in self._soon}
        if file in self._asked:
            return [now | soon, now, {file.name}]
        return [now | soon, now] if file in self._now else [now | soon]

    def _held_up(self, file: File) -> tuple[bool, TransientError | None]:
        """Another process fetches it: whether it has got nowhere for so long that this is worth saying."""
        size, clock = self.cache.arrived(file), time.monotonic()
        since, before = self._busy.get(file, (clock, -1))
        if size != before:
            self._busy[file] = (clock, size)
        elif clock - since > 2 * TIMEOUT:
            what = (
                f" is being fetched by another process, and for {clock - since:.0f} s no byte of it has come"
            )
            return True, TransientError(
                self.cache.source.address(file.at), what, "see whether that one hangs", size
            )
        return False, None

    def _full(self, file: File) -> TransientError:
        what = f" has no room for {file.name} ({file.bytes:,} bytes) beside what others fetch"
        advice = f"raise data.cache_bytes={self.cache.bound}, or give each run its own data.cache"
        return TransientError(str(self.cache.folder), what, advice)
