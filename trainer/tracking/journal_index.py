"""What a writer must know of a journal's lines, and the file beside it that keeps this: `journal.index`.

A start loads the index and reads the lines behind its offset, instead of all. The journal stays the truth: an
index that is missing, damaged, of another journal or of lines that are no longer there is left aside, the
whole journal is read, and a new index takes its place.
"""

import hashlib
import json
import os
from bisect import bisect_left
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_pipelines.common.files import replace_bytes

FORMAT = 1
SPAN = 2**20  # bytes of the journal between two indices; a start reads at most so many behind the index
MARKED = 2**14  # bytes of the journal between two marks, at first
MOST_MARKS = 1024
TAIL = 4096  # bytes before the offset that must still be those that were indexed


@dataclass
class JournalState:
    """What is known of the lines up to `end`. Its size is that of the names, however many lines there are.

    Attributes:
        end: the offset behind the last record, bytes.
        id: of the journal; None: it has no record that bears it.
        top: the highest images of a record that is no event; -1: there is none.
        highest: the highest images of each name that is no event's.
        count: how many events of each name there are.
        warned: digests of the warnings, hex.
        marks: some (offset, images), both rising: no record that is no event and ends there, or before, has
            more images.
        spacing: bytes between two marks; doubled where they become too many.
    """

    end: int = 0
    id: str | None = None
    top: int = -1
    highest: dict[str, int] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    marks: list[tuple[int, int]] = field(default_factory=list)
    spacing: int = field(default_factory=lambda: MARKED)

    def note(self, name: str, images: int, end: int) -> None:
        """A record that is no event, whose line ends at `end`."""
        self.highest[name] = max(self.highest.get(name, -1), images)
        self.top = max(self.top, images)
        self._advance(end)

    def note_event(self, name: str, number: int, warning: str | None, end: int) -> None:
        """An event, the `number`th of its name; `warning`: the digest of one."""
        self.count[name] = max(self.count.get(name, 0), number)
        if warning is not None:
            self.warned.add(warning)
        self._advance(end)

    def _advance(self, end: int) -> None:
        self.end = end
        if end - (self.marks[-1][0] if self.marks else 0) < self.spacing:
            return
        self.marks.append((end, self.top))
        if len(self.marks) > MOST_MARKS:
            del self.marks[::2]
            self.spacing *= 2

    def start_of(self, images: int) -> int:
        """An offset before which all records but events have fewer images than these."""
        place = bisect_left(self.marks, images, key=lambda mark: mark[1])
        return self.marks[place - 1][0] if place else 0


def warning_digest(name: str, text: object) -> str:
    """8 bytes, hex, by which a warning is known."""
    return hashlib.blake2b(f"{name}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def save(journal: Path, state: JournalState) -> None:
    """Writes the index of a journal whose lines up to `state.end` are on the disk.

    Where it cannot be written, the old one stays: it is older, and as true.
    """
    with suppress(OSError):
        content = {"format": FORMAT, "tail": _tail(journal, state.end), **asdict(state)}
        text = json.dumps(content | {"warned": sorted(state.warned)}).encode()
        replace_bytes(_path(journal), _digest(text) + b"\n" + text)


def load(journal: Path) -> JournalState | None:
    """The state that the index of a journal holds; None where it is of no use.

    Whether its id is that of the journal is left to the caller.
    """
    try:
        digest, _, text = _path(journal).read_bytes().partition(b"\n")
        if digest != _digest(text):
            return None
        content = json.loads(text)
        if content.pop("format") != FORMAT:
            return None
        tail = content.pop("tail")
        state = JournalState(**content)
        state.warned, state.marks = set(state.warned), [(end, images) for end, images in state.marks]
        return state if _tail(journal, state.end) == tail else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _path(journal: Path) -> Path:
    return journal.with_suffix(".index")


def _tail(journal: Path, end: int) -> str:
    """The digest (hex) of the last bytes before an offset; of fewer where the file is shorter."""
    start = max(0, end - TAIL)
    with open(journal, "rb") as file:
        return hashlib.blake2b(os.pread(file.fileno(), end - start, start), digest_size=16).hexdigest()


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).hexdigest().encode()
