"""Fetches a file by a program that writes it to its standard output. No shell takes part."""

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

LAST_WORDS = 4096  # bytes of standard error that are kept
MAY_PASS = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # of what hinders a program's start
# Becomes the program, after it has asked Linux to be killed when the thread that started it ends (1 is
# PR_SET_PDEATHSIG): no program outlives a trainer that was killed. A preexec_fn, which could ask as well,
# must not be used beside other threads.
_BOUND = """
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
    """The files that a command gives.

    Args:
        root: as the user wrote it; messages have its kind alone, as they reach logs and MLflow.
        words: the program and its arguments; `{}` in them stands for a file's name.
    """

    advice = "run the command by hand to see what is wrong with it"

    def __init__(self, root: str, words: list[str]):
        self.root, self.words = root, words

    def address(self, name: str) -> str:
        """A file and what gives it, for messages: the command's other words may be nobody's business."""
        return f"{name} (by `{self.words[0]}`)"

    @contextmanager
    def open(self, name: str, start: int, stop: threading.Event) -> Iterator[Stream]:
        """The whole file, whatever `start` is: a command cannot begin in the middle."""
        words = [word.replace("{}", name) for word in self.words]
        try:
            if shutil.which(words[0]) is None:
                raise FileNotFoundError(errno.ENOENT, "no such program, or it may not be run")
            bound = [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid())]
            process = subprocess.Popen(
                [*bound, *words] if sys.platform == "linux" else words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # so that whatever it starts ends with it
            )
        except (OSError, ValueError) as error:  # ValueError: of a word that holds a zero byte
            why = f"cannot be started ({getattr(error, 'strerror', None) or error})"
            if getattr(error, "errno", None) in MAY_PASS:
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
            process.stdout.close()
            process.stderr.close()


class _Output:
    """Reads what a process writes, and keeps its last words."""

    def __init__(self, process: subprocess.Popen, address: str, stop: threading.Event):
        self.process, self.address, self.stop = process, address, stop
        self.said = b""
        self.waiting = selectors.DefaultSelector()
        for pipe in (process.stdout, process.stderr):
            self.waiting.register(pipe, selectors.EVENT_READ)

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, *_) -> None:
        self.waiting.close()

    def read(self) -> bytes:
        """The next bytes, none where it has ended well. Raises Trouble or Interrupted."""
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            if self.stop.is_set():
                raise Interrupted
            for key, _ in self.waiting.select(0.1):
                block = os.read(key.fd, CHUNK)
                if not block:
                    self.waiting.unregister(key.fileobj)
                elif key.fileobj is self.process.stderr:
                    self.said = (self.said + block)[-LAST_WORDS:]
                else:
                    return block
            # Its standard error may stay open: ssh leaves it to the connection that it keeps for the next.
            reading = [key.fileobj for key in self.waiting.get_map().values()]
            if self.process.stdout not in reading and (status := self.process.poll()) is not None:
                if self.process.stderr in reading:
                    self._hear_out()
                if status:
                    raise self._trouble(f"failed with status {status}")
                return b""
        raise self._trouble(f"wrote nothing for {TIMEOUT:g} s")

    def _hear_out(self) -> None:
        """The last words of a process that has ended: more than a pipe holds is read at once."""
        os.set_blocking(self.process.stderr.fileno(), False)
        with suppress(BlockingIOError):
            self.said = (self.said + os.read(self.process.stderr.fileno(), CHUNK))[-LAST_WORDS:]

    def _trouble(self, what: str) -> TransientError:
        lines = self.said.decode("utf-8", "replace").strip().splitlines()
        last = f": {scrubbed(lines[-1])}" if lines else ""
        return TransientError(self.address, f" {what}{last}", Command.advice)
