"""The journal of a run: one line of JSON for everything that is tracked, before MLflow sees it.

    {"images": 12800, "time": 1767225600.123, "kind": "metric", "name": "loss", "value": 2.31}

`images` is the run's progress, `time` is in seconds since 1970 (to the millisecond: MLflow's timestamp).
"""

import errno
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
from trainer.tracking import journal_index
from trainer.tracking.journal_index import JournalState, warning_digest

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


def first_id(path: Path) -> str | None:
    """The id of a journal, of the first record that bears one; None: there is none. Raises OSError."""
    return next((record["value"] for record, _ in read(path) if record["name"] == ID), None)


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
        and -(2**63) <= record["images"] < 2**63  # as MLflow takes steps
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

    So is what a start reads: the journal's index (`journal_index`), and at most a megabyte behind it.
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
        self._mutex = threading.Lock()
        self._ahead: dict[str, set[int]] | None = None
        self._ahead_from = 0
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
        self._state = self._learn()
        if self._state.id is None:
            self._state.id = uuid.uuid4().hex
            self.write("tag", ID, self._state.id, 0)
            self.sync()
            flush(self.path.parent)
        self._write_index()

    @property
    def id(self) -> str:
        """By which the run in MLflow is known, 32 letters."""
        assert self._state.id is not None  # since it was opened
        return self._state.id

    def _learn(self) -> JournalState:
        """What the lines say, those behind the index read one by one; cuts off a torn rest."""
        state = journal_index.load(self.path)
        if state is None or state.id is None or state.id != first_id(self.path):
            state = JournalState()
        self._indexed = state.end
        for record, end in read(self.path, state.end):
            if record["kind"] in EVENTS:
                name, _, number = record["name"].rpartition(".")
                warning = warning_digest(name, record["value"]) if record["kind"] == "warning" else None
                state.note_event(name, int(number), warning, end)
            else:
                state.note(record["name"], record["images"], end)
            if record["name"] == ID and state.id is None:
                state.id = record["value"]
        if os.fstat(self._fd).st_size > state.end:
            os.ftruncate(self._fd, state.end)
        return state

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
            warning = warning_digest(name, value) if kind == "warning" else None
            if warning in self._state.warned:
                return False
            if kind not in EVENTS and self._has(name, images):
                return False
            number = self._state.count.get(name, 0) + 1
            record = {
                "images": images,
                "time": round(time.time(), 3),
                "kind": kind,
                "name": f"{name}.{number}" if kind in EVENTS else name,
                "value": _plain(float(value) if kind == "metric" else value),
            }
            line = json.dumps(record, allow_nan=False).encode() + b"\n"
            self._append(line)
            end = self._state.end + len(line)
            if kind in EVENTS:
                self._state.note_event(name, number, warning, end)
            else:
                self._note(name, images, end)
            self._write_index()
        return True

    def metrics(self, values: dict, images: int) -> None:
        """Appends a metric for each name in `values` (anything that float() accepts)."""
        for name, value in values.items():
            self.write("metric", name, value, images)

    def differing(self, values: dict, images: int) -> list[str]:
        """The names in `values` that have another value at these images in the file.

        It is read from where the run reached these images.
        """
        lines = read(self.path, self._state.start_of(images))
        before = {r["name"]: r["value"] for r, _ in lines if r["images"] == images}
        # compared as text, in which NaN equals itself
        return [name for name in values if name in before and repr(before[name]) != repr(float(values[name]))]

    def _has(self, name: str, images: int) -> bool:
        highest = self._state.highest.get(name, -1)
        if images >= highest:
            return images == highest
        if self._ahead is None or images < self._ahead_from:
            self._ahead_from, self._ahead = images, {}
            for record, _ in read(self.path, self._state.start_of(images)):
                if record["images"] >= images and record["kind"] not in EVENTS:
                    self._ahead.setdefault(record["name"], set()).add(record["images"])
        return images in self._ahead.get(name, ())

    def _note(self, name: str, images: int, end: int) -> None:
        if images > self._state.top:
            self._ahead = None
        elif self._ahead is not None:
            self._ahead.setdefault(name, set()).add(images)
        self._state.note(name, images, end)

    def _write_index(self) -> None:
        """Replaces the index where the journal has grown by a span since."""
        if self._state.end - self._indexed < journal_index.SPAN:
            return
        self._indexed = self._state.end
        # On a file system without locks a second writer's lines may be there, of which nothing is known here.
        if os.fstat(self._fd).st_size == self._state.end:
            self.sync()  # a power cut must not leave an index of lines that it has taken
            journal_index.save(self.path, self._state)

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
