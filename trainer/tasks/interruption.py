"""Requests to stop a command that saves nothing: it cleans up, says so in a line, and ends."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from trainer.distributed import launch
from trainer.distributed.launch import DistributedContext
from trainer.distributed.signals import SIGNALS, Stopped


@contextmanager
def ending_on_request(
    context: DistributedContext, rest: str, clean: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """While the block runs, a request to stop ends the process with status 143, or 130 for Ctrl-C.

    Args:
        rest: what a person should know then: the end of the line that rank 0 prints.
        clean: removes what has been begun; on rank 0.

    Signals that the process ignores, as under nohup, stay ignored. The handler raises nothing: in a finalizer
    of DALI's an exception would be lost.
    """

    def leave(why: str) -> None:
        if context.is_main:
            clean()
            with suppress(RuntimeError):  # the signal came within another print
                print(f"told to stop ({why}): {rest}", flush=True)
        launch.leave(128 + (signal.SIGINT if why == "SIGINT" else signal.SIGTERM))

    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in handled:
        signal.signal(number, lambda number, _: leave(signal.Signals(number).name))
    try:
        yield
    except Stopped as why:  # while a data set was made
        leave(str(why))
    finally:
        for number in handled:
            signal.signal(number, before[number])
