"""Fetches a file by a program that writes it to its standard output. No shell is involved."""

import errno
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from data_pipelines.access import scrubbed
from data_pipelines.common.errors import UserError
from data_pipelines.common.retry import Interrupted, TransientError
from data_pipelines.remote.transfer import CHUNK, TIMEOUT, Stream

STDERR_BYTES = 4096  # of the end of standard error, which are kept
TRANSIENT = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # errors of a program's start
# A wrapper that lets Linux kill it when the thread that started it ends (1 is PR_SET_PDEATHSIG), and then
# becomes the program: no program outlives a trainer that was killed. A preexec_fn could do the same, but must
# not be used beside other threads.
_ENDS_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
if os.getppid() == int(sys.argv[1]):
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"cannot be started ({error.strerror})")
"""


class Command:
    """The files that a command writes to its standard output.

    Args:
        root: as the user wrote it; messages, which reach logs and MLflow, name its kind alone.
        words: the program and its arguments; `{}` in them stands for a file's name.
    """

    advice = "run the command by hand to see what is wrong with it"

    def __init__(self, root: str, words: list[str]):
        self.root, self.words = root, words

    def address(self, name: str) -> str:
        """A file and the program that writes it, for messages; the command's other words may be private."""
        return f"{name} (by `{self.words[0]}`)"

    @contextmanager
    def open(self, name: str, start: int, stop: threading.Event) -> Iterator[Stream]:
        """Starts the program: it writes the whole file, as a command cannot begin at `start`.

        Raises TransientError, or UserError where the program cannot be started.
        """
        words = [word.replace("{}", name) for word in self.words]
        try:
            if shutil.which(words[0]) is None:
                raise FileNotFoundError(errno.ENOENT, "no such program, or it may not be run")
            wrapper = [sys.executable, "-I", "-S", "-c", _ENDS_WITH_PARENT, str(os.getpid())]
            process = subprocess.Popen(
                [*wrapper, *words] if sys.platform == "linux" else words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # so that the programs that it starts end with it
            )
        except (OSError, ValueError) as error:  # ValueError: a word with a zero byte
            why = f"cannot be started ({getattr(error, 'strerror', None) or error})"
            if getattr(error, "errno", None) in TRANSIENT:
                raise TransientError(
                    self.address(name), f" {why}", "free memory, processes or files"
                ) from None
            kind = self.root.partition(":")[0]
            raise UserError(f"data.root={kind}:...: {words[0]} {why}; install it, or give its path") from None
        try:
            with _Output(process, self.address(name), stop) as output:
                yield Stream(0, None, output.read)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None  # both were asked for
                pipe.close()


class _Output:
    """Reads what a process writes, and keeps the end of its standard error."""

    def __init__(self, process: subprocess.Popen, address: str, stop: threading.Event):
        assert process.stdout is not None
        assert process.stderr is not None
        self.process, self.address, self.stop = process, address, stop
        self.stderr, self.stderr_tail = process.stderr, b""
        self.selector = selectors.DefaultSelector()
        for pipe in (process.stdout, process.stderr):
            self.selector.register(pipe, selectors.EVENT_READ)

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, *_: object) -> None:
        self.selector.close()

    def read(self) -> bytes:
        """The next bytes; none where it has ended with status 0. Raises TransientError or Interrupted."""
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            if self.stop.is_set():
                raise Interrupted
            for key, _ in self.selector.select(0.1):
                block = os.read(key.fd, CHUNK)
                if not block:
                    self.selector.unregister(key.fileobj)
                elif key.fileobj is self.process.stderr:
                    self.stderr_tail = (self.stderr_tail + block)[-STDERR_BYTES:]
                else:
                    return block
            # Standard error may stay open: ssh leaves it to the connection that it shares with later calls.
            open_pipes = [key.fileobj for key in self.selector.get_map().values()]
            if self.process.stdout not in open_pipes and (status := self.process.poll()) is not None:
                if self.process.stderr in open_pipes:
                    self._drain_stderr()
                if status:
                    raise self._failure(f"failed with status {status}")
                return b""
        raise self._failure(f"wrote nothing for {TIMEOUT:g} s")

    def _drain_stderr(self) -> None:
        """Reads the rest of the standard error of a process that has ended, without waiting."""
        os.set_blocking(self.stderr.fileno(), False)
        with suppress(BlockingIOError):
            self.stderr_tail = (self.stderr_tail + os.read(self.stderr.fileno(), CHUNK))[-STDERR_BYTES:]

    def _failure(self, what: str) -> TransientError:
        lines = self.stderr_tail.decode("utf-8", "replace").strip().splitlines()
        last = f": {scrubbed(lines[-1])}" if lines else ""
        return TransientError(self.address, f" {what}{last}", Command.advice)
