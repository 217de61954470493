"""What of an evaluation fails costs its own figures and no others: what failed, and why, in one line each."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.common.errors import SharedError, UserError
from data_pipelines.common.retry import Interrupted
from trainer.distributed import collectives


@dataclass
class Failures:
    """The figures of an evaluation that could not be measured.

    Attributes:
        why: the reason, by the name of a figure or by what all names begin with.
    """

    why: dict[str, str] = field(default_factory=dict)

    def add(self, names: Sequence[str], why: str, say: Callable[[str], None]) -> None:
        """Figures of these names failed for one reason, which is a line for `say`."""
        self.why |= dict.fromkeys(names, why)
        say(f"warning: {', '.join(names)}: left out, {why}")

    @contextmanager
    def surviving(
        self, name: str, say: Callable[[str], None], fatal: tuple[type[Exception], ...] = ()
    ) -> Iterator[None]:
        """What fails inside costs the figures whose names begin with `name`.

        Raises:
            Interrupted: the run was asked to stop.
            Exception: an error of the kinds `fatal`, or of one rank among several, which may wait for it.
        """
        try:
            yield
        except Exception as error:
            shared = collectives.world_size() == 1 or isinstance(error, SharedError)
            if isinstance(error, (Interrupted, *fatal)) or not shared:
                raise
            self.add([name], reason(error), say)


def reason(error: Exception) -> str:
    """An error in one line: a mistake's own words; of any other its kind, and where it was raised."""
    first = str(error).partition("\n")[0]
    if isinstance(error, UserError):
        return first
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})" if trace else ""
    return f"{type(error).__name__}: {first}{place}"
