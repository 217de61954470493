"""A pool of processes that ends with its parent, however that ends."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from typing import TypeVar

from data_pipelines.common.errors import UserError

# A worker takes two seconds to start, in which one process writes about so many small images.
IMAGES_PER_WORKER = 5000

Result = TypeVar("Result")


def in_processes(
    function: Callable[..., Result], jobs: Sequence[tuple[object, ...]], images: int, workers: int | None
) -> Iterator[tuple[int, Result]]:
    """Yields (number of the job, function(*job)) as they are done, in any order.

    workers: None for one for each IMAGES_PER_WORKER of the `images`, up to the cores that this process may
    use. With one worker, this process does the work. Raises what the function raises; the workers then end at
    once, whatever they are doing.
    """
    if workers is None:
        workers = min(images // IMAGES_PER_WORKER, len(os.sched_getaffinity(0)))
    workers = min(workers, len(jobs))
    if workers <= 1:
        for number, job in enumerate(jobs):
            yield number, function(*job)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that torch's threads hold
    theirs, ours = context.Pipe(duplex=False)
    with theirs, ours, ProcessPoolExecutor(workers, context, _end_with_parent, (theirs,)) as pool:
        numbers = {pool.submit(function, *job): number for number, job in enumerate(jobs)}
        try:
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed (out of memory?); try again with workers=1"
            ) from None
        finally:
            if not all(future.done() for future in numbers):
                ours.close()
            pool.shutdown(cancel_futures=True)


def _end_with_parent(theirs: Connection) -> None:
    """Ends a worker when the parent closes its end of the pipe, or is killed.

    A pool alone does not end them: each worker has both ends of its queue open, and would wait there for
    ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C

    def watch() -> None:
        wait([theirs])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
