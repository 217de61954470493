"""A thread that fetches files into the cache ahead of the reader, in the order in which they will be read."""

import threading
import time
from concurrent import futures

from data_pipelines.common.retry import Interrupted, Retry, TransientError
from data_pipelines.remote.cache import CacheFull, File, ShardCache
from data_pipelines.remote.transfer import TIMEOUT

BUSY = 0.05  # seconds until the next look at a file that another process fetches
REST = 5.0  # seconds until the next attempt at a file that could not be fetched, while nobody waits for it


class Fetcher:
    """Fetches what was announced, and before that what a reader waits for without an announcement.

    A file that fails delays no other. An announced file is fetched once: where another process that shares
    the cache removes it again, it is fetched when a reader waits for it or with the next announcement.
    Otherwise two processes that fetch ahead would remove each other's files for ever. The thread starts when
    it is needed, also after `close`.
    """

    def __init__(self, cache: ShardCache):
        self.cache = cache
        self._changed = threading.Condition()
        self._now: list[File] = []
        self._soon: list[File] = []
        self._fetched: set[File] = set()  # since the last announcement
        self._requested: dict[File, futures.Future] = {}  # by readers that wait
        self._paused: dict[File, float] = {}  # until this time
        # Of files that another process fetches: when bytes arrived last, and how many there were.
        self._elsewhere: dict[File, tuple[float, int]] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def ahead(self, now: list[File], soon: list[File]) -> None:
        """Announces the files that are read now, in order, and next; the latter never displace the former."""
        with self._changed:
            if (now, soon) != (self._now, self._soon):
                self._now, self._soon = now, soon
                self._paused.clear()
                self._fetched.clear()
                self._wake()

    def get(self, file: File, retry: Retry) -> None:
        """Waits until a file is in the cache, or one attempt at it has failed.

        Raises:
            TransientError: another attempt may succeed.
            UserError: it cannot.
            Interrupted: `retry` was stopped, or `close` called.
        """
        while not self.cache.has(file):
            with self._changed:
                future = self._requested.setdefault(file, futures.Future())
                self._paused.pop(file, None)
                self._wake()
            while not futures.wait([future], 0.1).done:
                if retry.stopped.is_set():
                    raise Interrupted
            future.result()
        self.cache.touch(file)

    def close(self) -> None:
        """Ends the thread, and waits a second for it: a read from a silent server takes longer to return."""
        with self._changed:
            self._stop.set()
            for future in self._requested.values():
                future.set_exception(Interrupted())
            self._requested.clear()
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
                file = None
                while not stop.is_set() and (file := self._next(now := time.monotonic())) is None:
                    self._changed.wait(self._pause(now))
                if file is None or stop.is_set():
                    return
                keep = self._keep(file)
            failure: Exception | None = None
            try:
                done = self.cache.fetch(file, keep, stop)
            except CacheFull:
                done, failure = True, self._full(file)
            except Interrupted:
                return
            except Exception as error:  # raised again where a reader waits for the file
                done, failure = True, error
            if not done:
                failure = self._stalled(file)
                done = failure is not None
            with self._changed:
                if not stop.is_set():
                    self._note(file, done, failure)

    def _note(self, file: File, done: bool, failure: Exception | None) -> None:
        """Notes the outcome of an attempt; not done: another process fetches the file."""
        if not done or failure:
            self._paused[file] = time.monotonic() + (REST if done else BUSY)
        if done:
            self._elsewhere.pop(file, None)
        if done and not failure:
            self._fetched.add(file)
        if done and (future := self._requested.pop(file, None)):
            future.set_exception(failure) if failure else future.set_result(None)

    def _next(self, now: float) -> File | None:
        """The next file to fetch: requested without an announcement, or the first announced; None: none."""
        announced = [*self._now, *self._soon]
        for file in [*(file for file in self._requested if file not in announced), *announced]:
            wanted = file in self._requested or (file not in self._fetched and not self.cache.has(file))
            if wanted and self._paused.get(file, now) <= now:
                return file
        return None

    def _pause(self, now: float) -> float | None:
        """Seconds from `now` until the first pause of a file ends; None where none is paused."""
        pauses = [until - now for until in self._paused.values()]
        return min((pause for pause in pauses if pause > 0), default=None)

    def _keep(self, file: File) -> list[set[str]]:
        """The names that are not removed to make room for a file, in the order of `ShardCache.fetch`."""
        now, soon = {one.name for one in self._now}, {one.name for one in self._soon}
        if file in self._requested:
            return [now | soon, now, {file.name}]
        return [now | soon, now] if file in self._now else [now | soon]

    def _stalled(self, file: File) -> TransientError | None:
        """The failure where another process fetches a file, and no byte has arrived for 2 `TIMEOUT`."""
        size, clock = self.cache.bytes_arrived(file), time.monotonic()
        since, before = self._elsewhere.get(file, (clock, -1))
        if size != before:
            self._elsewhere[file] = (clock, size)
        elif clock - since > 2 * TIMEOUT:
            idle = f"{clock - since:.0f} s"
            what = f" is being fetched by another process, and for {idle} no byte of it has come"
            address = self.cache.source.address(file.remote_name)
            return TransientError(address, what, "see whether that one hangs", size)
        return None

    def _full(self, file: File) -> TransientError:
        what = f" has no room for {file.name} ({file.bytes:,} bytes) beside what others fetch"
        advice = f"raise data.cache_bytes={self.cache.bound}, or give each run its own data.cache"
        return TransientError(str(self.cache.folder), what, advice)
