"""Failures because the machine lacks something: no file, image or line of code is to blame for them."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from data_pipelines.common.errors import UserError

ADVICE = {
    "memory": "make `batch` smaller (or raise `accumulate`), lower data.threads or data.prefetch, "
    "or end what else uses memory",
    "threads": "lower data.threads, or raise the limits of processes (ulimit -u) and of memory",
    "open files": "raise the limit of open files (ulimit -n)",
}
NUMBERS = {errno.ENOMEM: "memory", errno.EMFILE: "open files", errno.ENFILE: "open files"}
# As C++, CUDA, OpenCV, torch, Python and the system's library say it.
WORDS = {
    "memory": (
        *(
            "out of memory",
            "bad_alloc",
            "bad alloc",
            "insufficient memory",
            "not enough memory",
            "out_of_memory",
        ),
        *(
            "cannot allocate",
            "can't allocate",
            "could not allocate",
            "failed to allocate",
            "unable to allocate",
        ),
        *("memoryallocation", "memory allocation", "alloc_failed"),
    ),
    "threads": ("can't start new thread", "resource temporarily unavailable", "thread creation failed"),
    "open files": ("too many open files",),
}


def shortage(error: BaseException) -> str | None:
    """What the machine lacks, where that is why `error` was raised: a key of `ADVICE`; else None."""
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, UserError):
        return None
    if isinstance(error, OSError) and error.errno in NUMBERS:
        return NUMBERS[error.errno]
    text = str(error).lower()
    return next((what for what, words in WORDS.items() if any(word in text for word in words)), None)


@contextmanager
def shortage_named(doing: str, advice: str = "") -> Iterator[None]:
    """Raises UserError, in one line, for what fails inside because the machine lacks something.

    Args:
        doing: what fails then: "making a batch", say.
        advice: what to do; default: what helps a run.
    """
    try:
        yield
    except Exception as error:
        if (what := shortage(error)) is None:
            raise
        line = f"{doing} fails: not enough {what} ({_reason(error)}); {advice or ADVICE[what]}"
        raise UserError(line) from error


def raise_shortage(error: Exception, doing: str) -> None:
    """Raises UserError where the machine lacks something; else what was read is to blame for `error`."""
    with shortage_named(doing, "end what else uses it, or say workers=1; the same command continues"):
        if shortage(error):
            raise error


def _reason(error: Exception) -> str:
    """Of many lines, as DALI's and torch's are, the one that says it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = [word for part in WORDS.values() for word in part]
    said = (line for line in lines if any(word in line.lower() for word in words))
    return next(said, lines[0] if lines else type(error).__name__)[:200]
