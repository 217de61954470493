"""The journal of a run: one line of JSON for everything that is tracked, before MLflow sees it.

    {"images": 12800, "time": 1767225600.123, "kind": "metric", "name": "loss", "value": 2.31}

`images` is the run's progress, `time` is in seconds since 1970 (to the millisecond: MLflow's timestamp).
"""

import errno
import hashlib
import json
import math
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import cannot_write, flush
from data_pipelines.common.locks import close_locked, is_locked, open_locked

KINDS = ("metric", "parameter", "tag", "artifact", "resumed", "warning", "end")
# Events of a process, which may recur at the same images (a run can be resumed twice from one checkpoint): so
# their names are numbered: resumed.1, resumed.2, ...
EVENTS = ("resumed", "warning", "end")
FIELDS = {"images", "time", "kind", "name", "value"}
ID = "journal.id"  # the name of the record by which a run in MLflow is known; the first of a journal

# ---- reading -------------------------------------------------------------------------------------


def read(path: Path, offset: int = 0) -> Iterator[tuple[dict, int]]:
    """Yields (record, offset of its line's end) for each whole line from `offset` on, up to a torn one.

    A whole line that is no record (blocks lost in a power cut) is skipped. The value of a metric is a float,
    which may be infinite or NaN. Raises OSError.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            offset += len(line)
            if not line.endswith(b"\n"):
                return
            record = _parse(line)
            if record is not None:
                yield record, offset


def _parse(line: bytes) -> dict | None:
    try:
        record = json.loads(line)
        if record.keys() != FIELDS or record["kind"] not in KINDS or not _is_formed(record):
            return None
        if record["kind"] in EVENTS:
            int(record["name"].rpartition(".")[2])
        if record["kind"] == "metric":
            record["value"] = float(record["value"])
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return record


def _is_formed(record: dict) -> bool:
    """Whether the fields that are compared, and used as keys and time stamps, have the types for it."""
    return (
        type(record["images"]) is int
        and type(record["time"]) in (int, float)
        and math.isfinite(record["time"])
        and isinstance(record["name"], str)
        and (isinstance(record["value"], str) or (record["kind"] != "artifact" and record["name"] != ID))
    )


# ---- writing -------------------------------------------------------------------------------------


class Journal:
    """Appends to a run's journal. A written line survives a SIGKILL at once, a power cut after `sync`.

    Only one process may write a journal. A repeated (name, images) is not written again, so a resumed run may
    replay its steps.

    Memory is that of the metrics' names, however long the run. A name's images rise, except while steps are
    replayed after a resume: the highest images of each name decide about a line that is new, and only a
    replay, which is shorter than two save intervals, needs the lines that lie ahead of it. They are read at
    its first line, and dropped when the run passes what it had reached before. (An 8-byte digest of each
    warning is kept.)
    """

    def __init__(
        self, path: str | Path, wait: float = 3.0, advice: str = "choose a folder with outputs=FOLDER"
    ):
        """Opens or makes the journal at `path` and truncates a torn last line.

        Waits `wait` seconds for another writer, which may be ending. `advice`: what helps where the folder
        cannot be written.

        Raises UserError where the folder cannot be written or another process writes this journal.
        """
        self.path = Path(path)
        self.id = None
        self._mutex = threading.Lock()
        self._highest: dict[str, int] = {}
        self._top = -1
        self._ahead: set[tuple[str, int]] | None = None
        self._ahead_from = 0
        self._count: dict[str, int] = {}
        self._warned: set[bytes] = set()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = open_locked(self.path, wait)
        except OSError as error:
            if error.errno == errno.EISDIR:
                raise cannot_write(self.path, error) from error
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); {advice}") from error
        if fd is None:
            raise UserError(
                f"{self.path}: another process is writing this run; wait until it has ended, "
                "or start another run with run=NAME"
            )
        self._fd = fd
        self._learn()
        if self.id is None:
            self.id = uuid.uuid4().hex
            self.write("tag", ID, self.id, 0)
            self.sync()
            flush(self.path.parent)

    def _learn(self) -> None:
        end = 0
        for record, end in read(self.path):  # noqa: B007 (the last end is where the torn rest begins)
            if record["kind"] in EVENTS:
                name, _, number = record["name"].rpartition(".")
                self._count[name] = max(self._count.get(name, 0), int(number))
                if record["kind"] == "warning":
                    self._warned.add(_digest(name, record["value"]))
            else:
                self._note(record["name"], record["images"])
            if record["name"] == ID and self.id is None:
                self.id = record["value"]
        if os.fstat(self._fd).st_size > end:
            os.ftruncate(self._fd, end)

    def write(self, kind: str, name: str, value: Any, images: int) -> bool:
        """Appends one record; returns False where (name, images), or that warning, was written before.

        A metric's `value` is anything that float() accepts, another value anything that JSON represents.
        Raises UserError where the file cannot be written (a full disk).
        """
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
        images = int(images)
        with self._mutex:
            if not is_locked(self._fd):
                raise ValueError(f"{self.path}: the journal is closed, or belongs to the parent process")
            if kind == "warning" and _digest(name, value) in self._warned:
                return False
            if kind not in EVENTS and self._has(name, images):
                return False
            number = self._count.get(name, 0) + 1
            record = {
                "images": images,
                "time": round(time.time(), 3),
                "kind": kind,
                "name": f"{name}.{number}" if kind in EVENTS else name,
                "value": _plain(float(value) if kind == "metric" else value),
            }
            self._append(json.dumps(record, allow_nan=False).encode() + b"\n")
            if kind in EVENTS:
                self._count[name] = number
                if kind == "warning":
                    self._warned.add(_digest(name, value))
            else:
                self._note(name, images)
        return True

    def metrics(self, values: dict, images: int) -> None:
        """Appends a metric for each name in `values` (anything that float() accepts)."""
        for name, value in values.items():
            self.write("metric", name, value, images)

    def differing(self, values: dict, images: int) -> list[str]:
        """The names in `values` that have another value at these images in the file; reads all of it."""
        before = {r["name"]: r["value"] for r, _ in read(self.path) if r["images"] == images}
        # compared as text, in which NaN equals itself
        return [name for name in values if name in before and repr(before[name]) != repr(float(values[name]))]

    def _has(self, name: str, images: int) -> bool:
        highest = self._highest.get(name, -1)
        if images >= highest:
            return images == highest
        if self._ahead is None or images < self._ahead_from:
            self._ahead_from = images
            self._ahead = {
                (record["name"], record["images"])
                for record, _ in read(self.path)
                if record["images"] >= images and record["kind"] not in EVENTS
            }
        return (name, images) in self._ahead

    def _note(self, name: str, images: int) -> None:
        self._highest[name] = max(self._highest.get(name, -1), images)
        if images > self._top:
            self._top = images
            self._ahead = None
        elif self._ahead is not None:
            self._ahead.add((name, images))

    def _append(self, line: bytes) -> None:
        try:
            written = os.write(self._fd, line)  # one call on O_APPEND: a reader never sees half a line
            if written < len(line):
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"{self.path}: cannot be written ({error.strerror}); make room and run the same command again"
        )

    def sync(self) -> None:
        """Flushes to the disk, before a checkpoint is published: a checkpoint must not outlive the lines.

        Raises UserError where that fails: a network file system may report here alone that it is full.
        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Closes the file and releases the lock. May be called twice."""
        close_locked(self._fd)


def _plain(value: object) -> object:
    # JSON has no infinity and no NaN: they become text that float() reads back.
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _digest(name: str, text: object) -> bytes:
    return hashlib.blake2b(f"{name}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
