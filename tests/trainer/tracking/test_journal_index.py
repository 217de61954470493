"""The journal's index: a start reads the tail alone, and behaves as if it had read all."""

import json
import os
import random
import signal
import tracemalloc
from pathlib import Path

import pytest

from trainer.tracking import journal_index
from trainer.tracking.journal import EVENTS, ID, Journal, read

ID_LINE = {"images": 0, "time": 1.0, "kind": "tag", "name": ID, "value": "a" * 32}


def bytes_read():
    """Bytes that this thread has read by any call."""
    return int(Path("/proc/thread-self/io").read_text().split()[1])


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(journal_index, "SPAN", 2000)
    monkeypatch.setattr(journal_index, "MOST_MARKS", 8)
    monkeypatch.setattr(journal_index, "MARKED", 200)


# ---- equal to reading all -------------------------------------------------------------------------


class Oracle:
    """A writer that reads all of the file before each line."""

    def __init__(self, path):
        self.path = path

    def lines(self):
        content = self.path.read_bytes() if self.path.exists() else b""
        return [json.loads(line) for line in content.splitlines()]

    def write(self, kind, name, value, images):
        before = self.lines()
        if kind in EVENTS:
            same = [r for r in before if r["kind"] in EVENTS and r["name"].rpartition(".")[0] == name]
            if kind == "warning" and any(r["kind"] == kind and r["value"] == value for r in same):
                return False
            name = f"{name}.{max([int(r['name'].rpartition('.')[2]) for r in same], default=0) + 1}"
        elif any((r["name"], r["images"]) == (name, images) for r in before if r["kind"] not in EVENTS):
            return False
        record = {"images": images, "time": 1.0, "kind": kind, "name": name, "value": value}
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        return True


def timeless(path):
    return [{key: value for key, value in record.items() if key != "time"} for record, _ in read(path)]


def damage(chance, path, kept):
    """What may befall an index between two starts; `kept`: one of before."""
    index = path.with_suffix(".index")
    what = chance.choice(("nothing", "nothing", "missing", "older", "flipped", "cut", "empty"))
    if not index.exists() or what == "nothing":
        return what
    content = index.read_bytes()
    if what == "missing":
        index.unlink()
    elif what == "older" and kept:
        index.write_bytes(kept[0])
    elif what == "flipped":
        place = chance.randrange(len(content))
        index.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif what in ("cut", "empty"):
        index.write_bytes(content[: chance.randrange(len(content)) if what == "cut" else 0])
    kept[:] = [content]
    return what


def lines_are_lost(chance, path, other):
    """The journal goes back to one of its lines, and may then have others, longer than before."""
    lines = path.read_bytes().splitlines(keepends=True)
    stay = chance.randrange(1, len(lines) + 1)
    added = b""
    if chance.random() < 0.5:
        more = [json.dumps(ID_LINE | {"name": "other", "images": images}) for images in range(len(lines))]
        added = "".join(f"{line}\n" for line in more).encode()
    path.write_bytes(b"".join(lines[:stay]) + added)
    content = [json.loads(line) for line in path.read_bytes().splitlines()]
    other.write_text("".join(json.dumps(record) + "\n" for record in content))


@pytest.mark.parametrize("seed", range(6))
def test_any_history_gives_what_reading_all_gives(tmp_path, seed, small):
    chance, path, other = random.Random(seed), tmp_path / "journal.jsonl", tmp_path / "other.jsonl"
    Journal(path).close()
    other.write_bytes(path.read_bytes())
    oracle, kept, images, befell, used = Oracle(other), [], 0, set(), 0
    for start in range(12):
        loaded = journal_index.load(path)
        used += loaded is not None and loaded.end > 0
        journal = Journal(path)
        event = ("resumed", "resumed", images, images)
        assert journal.write(*event) == oracle.write(*event)
        for _ in range(chance.randrange(10, 60)):
            images += chance.choice((1, 1, 1, 1, 0, 3))
            name = chance.choice(("loss", "rate", "knn", "late" if start > 6 else "loss"))
            line = chance.choice(
                (("metric", name, chance.random(), images),) * 6
                + (("metric", name, 1.5, max(0, images - chance.randrange(200))),)
                + (("warning", "data", f"warning {chance.randrange(6)}", images),)
                + (("tag", f"tag{chance.randrange(3)}", "x", 0),)
            )
            assert journal.write(*line) == oracle.write(*line), (seed, start, line)
        asked, at = {"loss": 1.5, "rate": 0.5, "late": 1.5}, max(0, images - chance.randrange(100))
        values = {r["name"]: r["value"] for r in oracle.lines() if r["images"] == at}
        assert journal.differing(asked, at) == [n for n in asked if n in values and values[n] != asked[n]]
        journal.close()
        assert timeless(path) == timeless(other), (seed, start)
        if chance.random() < 0.3:
            lines_are_lost(chance, path, other)
        befell.add(damage(chance, path, kept))
        with open(path, "ab") as file:
            file.write(chance.choice((b"", b'{"images": 3, "ti', b"\0" * 50, b"[1]\n")))
        images = max(0, images - chance.randrange(60))  # back to a checkpoint
    assert used
    assert len(befell) > 2


def test_a_mark_is_behind_no_record_that_is_asked_for():
    state, chance, records = journal_index.JournalState(spacing=10), random.Random(0), []
    end = images = 0
    for _ in range(20_000):
        end, images = end + chance.randrange(1, 9), max(0, images + chance.choice((2, 1, 1, -1)))
        records.append((end, images))
        state.note("loss", images, end)
    assert len(state.marks) <= journal_index.MOST_MARKS
    assert state.spacing > 10
    for asked in range(0, state.top + 2, 97):
        start = state.start_of(asked)
        assert all(images < asked for end, images in records if end <= start)
        first = next((end for end, images in records if images >= asked), end)
        assert first - start <= 3 * state.spacing, "and not far before it"


# ---- kills ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "half", "written", "renamed"])
def test_a_kill_while_the_index_is_written(tmp_path, moment, small):
    path, die = tmp_path / "journal.jsonl", lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    journal = Journal(path)
    for images in range(40):
        journal.write("metric", "loss", 1.0, images)
    journal.close()
    before = path.with_suffix(".index").read_bytes()
    child = os.fork()
    if child == 0:
        try:
            journal = Journal(path)
            whole, replace = Path.write_bytes, os.replace
            if moment == "before":
                journal_index.replace_bytes = die
            elif moment == "half":
                Path.write_bytes = lambda self, data: (whole(self, data[: len(data) // 2]), die())
            elif moment == "written":
                os.replace = die
            else:
                os.replace = lambda old, new: (replace(old, new), die())
            for images in range(1000):
                journal.write("metric", "loss", 1.0, images)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert (path.with_suffix(".index").read_bytes() == before) == (moment != "renamed")
    assert journal_index.load(path), "what is there is whole"
    journal = Journal(path)
    for images in range(100):
        journal.write("metric", "loss", 2.0, images)
    journal.close()
    images = [record["images"] for record, _ in read(path) if record["name"] == "loss"]
    assert images == list(range(100))


def test_an_index_that_cannot_be_written_costs_nothing(tmp_path, small):
    path = tmp_path / "journal.jsonl"
    path.with_suffix(".index").mkdir()
    for start in (0, 90):
        journal = Journal(path)
        for images in range(start, start + 100):
            journal.write("metric", "loss", 1.0, images)
        journal.close()
    assert [r["images"] for r, _ in read(path) if r["name"] == "loss"] == list(range(190))
    assert not list(tmp_path.glob(".*"))


def test_a_new_journal_does_not_believe_the_index_of_another(tmp_path, small):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for images in range(100):
        journal.write("metric", "loss", 1.0, images)
    journal.close()
    index, first = path.with_suffix(".index"), journal.id
    assert index.exists()
    # a copied run that was given another id: the indexed tail is the same
    path.write_bytes(path.read_bytes().replace(first.encode(), b"b" * 32))
    journal = Journal(path)
    assert journal.id == "b" * 32
    journal.close()
    assert journal_index.load(path).id == "b" * 32


# ---- a million records ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_journal_of_a_million_records_opens_by_its_tail(tmp_path):
    path, steps = tmp_path / "journal.jsonl", 250_000
    with open(path, "w") as file:
        file.write(json.dumps(ID_LINE) + "\n")
        for images in range(64, 64 * steps + 1, 64):
            for name in ("loss", "rate", "images_per_second", "data_wait"):
                file.write(
                    f'{{"images": {images}, "time": 1.5, "kind": "metric", "name": "{name}", "value": 0.5}}\n'
                )
    size, last = path.stat().st_size, 64 * steps
    Journal(path).close()  # the first start of this version reads all, and writes the index
    index = path.with_suffix(".index").stat().st_size
    assert index < 64_000
    with open(path, "a") as file:  # killed some steps later
        file.write('{"images": 16000064, "time": 1.5, "kind": "metric", "name": "loss", "value": 0.5}\n{"ima')
    tracemalloc.start()
    before = bytes_read()
    journal = Journal(path)
    opened = bytes_read() - before
    for images in range(last - 64 * 1000, last + 128, 64):  # replayed, and on
        journal.metrics({"loss": 2.0, "rate": 2.0}, images)
    journal.write("end", "end", "KILLED", last + 64)
    replayed, peak = bytes_read() - before, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    journal.close()
    assert size > 80_000_000
    assert opened < index + 64_000, "of a journal whose index is new"
    assert replayed < 2_000_000
    assert peak < 2_000_000
    added = list(read(path, size))
    assert [(r["name"], r["images"], r["value"]) for r, _ in added] == [
        ("loss", last + 64, 0.5),
        ("rate", last + 64, 2.0),
        ("end.1", last + 64, "KILLED"),
    ]
