"""A run that does not fit into memory, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from data_pipelines.common.shortage import shortage, shortage_named


@contextmanager
def memory_named(accumulate: int) -> Iterator[None]:
    """Raises UserError, in one line, where a run does not fit into the memory of the GPU or the machine."""
    advice = (
        f"the same command goes on with a larger `accumulate` (now {accumulate}), which takes the batch in "
        "more parts; or start a run with a smaller `batch`, or end what else uses memory"
    )
    try:
        yield
    except Exception as error:
        if shortage(error) != "memory":
            raise
        with shortage_named("training", advice):
            raise
