"""Output that nobody reads any more: a closed pipe or a terminal that is gone ends no run."""

import errno
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

UNREAD = (errno.EPIPE, errno.EIO)  # the reader of a pipe has ended; the terminal has hung up


class Descriptor(io.RawIOBase):
    """A file descriptor to write to. Once nobody reads it, what is written goes to /dev/null.

    The descriptor itself then leads there, so that libraries in C and child processes may write on, too.
    """

    def __init__(self, number: int):
        self._number = number

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer") -> int:
        """Writes the bytes; returns how many were taken. Raises OSError for any cause but a lost reader."""
        try:
            return os.write(self._number, data)
        except OSError as error:
            if error.errno not in UNREAD:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._number)
        os.close(nowhere)
        return memoryview(data).nbytes


def outlive_readers() -> None:
    """Makes standard output and error of this process outlive their readers, and written line by line.

    What replaces them stays.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # started with the descriptor closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the life of the process
        elif stream is getattr(sys, f"__{name}__"):
            stream.flush()
            kept = io.TextIOWrapper(
                io.BufferedWriter(Descriptor(stream.fileno())),
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=True,  # also in a file, which somebody follows while hours pass
            )
            setattr(sys, name, kept)
