"""A pool of processes that ends with its parent, however that ends."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

from data_pipelines.errors import UserError

IMAGES_PER_WORKER = (
    5000  # a worker takes two seconds to start, as long as it takes to write so many small images
)


def in_processes(
    function, jobs: list[tuple], images: int, workers: int | None
) -> Iterator[tuple[int, object]]:
    """Yields (number of the job, function(*job)) as they are done; one worker is this process itself.

    workers: None for one in IMAGES_PER_WORKER of the `images`, up to the cores that this process may use.
    Raises what the function raises, after the jobs under way have ended and the others have been dropped.
    """
    if workers is None:
        workers = min(images // IMAGES_PER_WORKER, len(os.sched_getaffinity(0)))
    workers = min(workers, len(jobs))
    if workers <= 1:
        for number, job in enumerate(jobs):
            yield number, function(*job)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that torch's threads hold
    with ProcessPoolExecutor(workers, context, _end_with_parent) as pool:
        numbers = {pool.submit(function, *job): number for number, job in enumerate(jobs)}
        try:
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed (out of memory?); give the command with workers=1"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Without this, a killed parent's workers wait for ever: each holds the other end of its own queue."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer

    def watch():
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
