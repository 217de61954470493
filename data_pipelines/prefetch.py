"""A thread that runs an iterator ahead of its consumer."""

import queue
import threading
import time
from collections.abc import Callable, Iterator

from data_pipelines.common.retry import Interrupted


class Prefetch:
    """Runs an iterator in a thread, `depth` items ahead; errors come out where the item would have.

    Args:
        items: the iterator.
        depth: items made ahead.
        give_up: receives the seconds that the consumer has waited for an item; where it returns true, the
            consumer gets Interrupted.
    """

    END = object()

    def __init__(self, items: Iterator, depth: int, give_up: Callable[[float], bool] = lambda _: False):
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._give_up = give_up
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), name="prefetch", daemon=True)
        self._thread.start()

    def _run(self, items: Iterator) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
            self._put(self.END)
        except BaseException as error:
            self._put(error)

    def _put(self, item) -> bool:
        while not self._closing.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator:
        return self

    def __next__(self):
        if self._closing.is_set():
            raise StopIteration
        began = time.monotonic()
        while True:
            try:
                item = self._queue.get(timeout=0.1)
                break
            except queue.Empty:
                if self._give_up(time.monotonic() - began):
                    raise Interrupted from None
        if item is self.END or isinstance(item, BaseException):
            self._queue.put(item)  # the next call ends in the same way
            raise StopIteration if item is self.END else item
        return item

    def close(self) -> None:
        """Ends the thread. A second call does nothing."""
        self._closing.set()
        self._thread.join()
        self._give_up = lambda _: False  # a reference cycle with its owner would keep DALI's threads alive
