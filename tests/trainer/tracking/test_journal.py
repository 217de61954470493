"""The journal: nothing twice, nothing lost, whatever ends the writer."""

import errno
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import tracemalloc

import pytest

from data_pipelines.common import locks
from data_pipelines.common.errors import UserError
from data_pipelines.common.locks import close_locked, open_locked
from trainer.tracking.journal import Journal, read


def records(path):
    return [record for record, _ in read(path)]


def pairs(path):
    return [(record["name"], record["images"]) for record in records(path)]


def test_a_line_holds_images_time_kind_name_value(tmp_path):
    journal = Journal(tmp_path / "run" / "journal.jsonl")
    assert journal.write("metric", "loss", 2.5, 128)
    journal.close()
    first, second = (json.loads(line) for line in journal.path.read_text().splitlines())
    assert first["kind"] == "tag"
    assert first["name"] == "journal.id"
    assert first["value"] == journal.id
    assert len(journal.id) == 32
    assert list(second) == ["images", "time", "kind", "name", "value"]
    assert second["value"] == 2.5
    assert second["images"] == 128


def test_the_first_write_wins(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.write("metric", "loss", 1.0, 100)
    assert not journal.write("metric", "loss", 2.0, 100)
    assert journal.write("metric", "loss", 3.0, 200)
    assert not journal.write("metric", "loss", 4.0, 100)
    assert journal.write("metric", "loss", 5.0, 150), "out of order, but not yet there"
    assert not journal.write("metric", "loss", 6.0, 150)
    journal.close()
    assert [(r["images"], r["value"]) for r in records(journal.path)[1:]] == [(100, 1), (200, 3), (150, 5)]


def test_a_replay_after_a_resume_writes_only_what_is_missing(tmp_path):
    path = tmp_path / "journal.jsonl"

    def steps(start, stop):
        journal = Journal(path)
        journal.write("tag", "ranks", "2", 0)
        if start:
            journal.write("resumed", "resumed", start, start)
        for images in range(start + 1, stop + 1):
            journal.metrics({"loss": images, "rate": 1.0}, images)
            if images % 4 == 0:
                journal.write("metric", "knn", 0.5, images)
        journal.close()

    steps(0, 10)
    with open(path, "rb+") as file:  # the kill came between two metrics of one step
        file.truncate(path.read_bytes().rindex(b'{"images": 10'))
    steps(6, 8)  # killed again before it got where it had been
    steps(6, 20)
    written = pairs(path)
    assert len(written) == len(set(written))
    metrics = {pair for pair in written if pair[0] in ("loss", "rate", "knn")}
    every_step = {(name, images) for images in range(1, 21) for name in ("loss", "rate")}
    assert metrics == every_step | {("knn", images) for images in (4, 8, 12, 16, 20)}
    assert [name for name, _ in written if name.startswith("resumed")] == ["resumed.1", "resumed.2"]
    assert written.count(("ranks", 0)) == 1


def test_what_differs_from_the_file_is_named(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    values = {"same": 1 / 3, "nan": math.nan, "zero": 0, "other": 1.0}
    journal.metrics(values, 5)
    journal.metrics({"other": 2.0, "elsewhere": 1.0}, 6)
    assert journal.differing(values, 5) == []
    assert journal.differing(values | {"other": 2.0, "nan": 1.0, "elsewhere": 3, "new": 1}, 5) == [
        "nan",
        "other",
    ]
    journal.close()


def test_events_are_numbered_and_warnings_not_repeated(tmp_path):
    path = tmp_path / "journal.jsonl"
    for _ in range(2):
        journal = Journal(path)
        journal.write("resumed", "resumed", 64, 64)
        written = journal.write("warning", "data", "shard 3 is truncated", 64)
        journal.write("warning", "data", f"sample {journal._state.count['resumed']} replaced", 64)
        journal.write("end", "end", "KILLED", 64)
        journal.close()
    assert not written
    assert [name for name, _ in pairs(path)[1:]] == [
        *("resumed.1", "data.1", "data.2", "end.1"),
        *("resumed.2", "data.3", "end.2"),
    ]


def test_non_finite_metrics_come_back(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1 / 3}, 1)
    journal.write("parameter", "limit", math.inf, 0)
    journal.close()
    values = {r["name"]: r["value"] for r in records(journal.path)}
    assert math.isnan(values["a"])
    assert values["b"] == math.inf
    assert values["c"] == -math.inf
    assert values["d"] == 1 / 3
    for line in journal.path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # strict JSON: no bare NaN


GARBAGE = [b'{"images": 3, "ti', b"\0" * 5000, b"\0\0\0\n", b"[1]\n", b"{}\n", b"\xff\xfe\n{"]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_torn_end_is_cut(tmp_path, garbage):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.write("metric", "loss", 1.0, 1)
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + garbage)
    assert pairs(path) == [("journal.id", 0), ("loss", 1)]
    journal = Journal(path)
    assert path.read_bytes() == whole
    assert journal.write("metric", "loss", 2.0, 2)
    journal.close()
    assert pairs(path) == [("journal.id", 0), ("loss", 1), ("loss", 2)]


def test_reading_goes_on_from_an_offset_and_waits_for_a_whole_line(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.metrics({"a": 1.0, "b": 2.0}, 1)
    (_, first), (_, second), (_, third) = read(journal.path)
    assert [r["name"] for r, _ in read(journal.path, first)] == ["a", "b"]
    journal.close()
    journal.path.write_bytes(journal.path.read_bytes()[:-1])
    assert [end for _, end in read(journal.path, first)] == [second]
    assert third == journal.path.stat().st_size + 1


def test_two_writers_are_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    code = (
        "import sys; from trainer.tracking.journal import Journal; j = Journal(sys.argv[1]); "
        "print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "open\n"
    with pytest.raises(UserError, match=r"another process is writing this run.*run=NAME"):
        Journal(path, wait=0.1)
    other.send_signal(signal.SIGKILL)
    Journal(path).close()  # without waiting for the process to be reaped
    other.communicate()


def test_a_file_system_without_locks_is_told_once(tmp_path, monkeypatch, capsys):
    def refuse(*_) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_warned_of_no_locks", False)
    for name in ("a", "b"):
        close_locked(open_locked(tmp_path / name))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'a'}: this file system has no locks (No locks available)")


def test_a_forked_child_neither_keeps_the_lock_nor_writes(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    # The child also ends with this process, whose end of `release` closes.
    ready, release = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(release[1])
        try:
            journal.write("metric", "loss", 1.0, 1)
            os.write(ready[1], b"written")
        except ValueError:
            os.write(ready[1], b"refused")
        os.read(release[0], 1)
        os._exit(0)
    assert os.read(ready[0], 10) == b"refused"
    with pytest.raises(UserError):
        Journal(journal.path, wait=0)
    journal.close()
    Journal(journal.path, wait=0).close()  # the child still lives
    os.write(release[1], b"x")
    os.waitpid(child, 0)


def test_a_kill_loses_no_line_that_was_written(tmp_path):
    path = tmp_path / "journal.jsonl"
    code = (
        "import sys, itertools; from trainer.tracking.journal import Journal; j = Journal(sys.argv[1])\n"
        "for i in itertools.count(1): j.write('metric', 'loss', i, i); print(i, flush=True)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
    for _ in range(500):
        writer.stdout.readline()
    writer.kill()
    printed = [int(line) for line in writer.communicate()[0].split()]
    journal = Journal(path)
    journal.close()
    written = [images for name, images in pairs(path) if name == "loss"]
    assert written == list(range(1, len(written) + 1))
    assert len(written) >= max(printed, default=500)


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"journal.jsonl: cannot be written .*outputs=FOLDER") as caught:
        Journal(tmp_path / "file" / "run" / "journal.jsonl")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_and_leaves_no_torn_line(tmp_path):
    code = """if True:
        import resource, signal, sys
        from data_pipelines.common.errors import UserError
        from trainer.tracking.journal import Journal, read
        journal = Journal(sys.argv[1])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            for images in range(100):
                journal.write("metric", "loss", 1.0, images)
        except UserError as error:
            print(error)
        assert journal.path.read_bytes().endswith(b"}\\n")
    """
    command = [sys.executable, "-c", code, tmp_path / "j"]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot be written" in out.stdout
    assert out.stdout.count("\n") == 1


def test_memory_does_not_grow_with_the_run(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    tracemalloc.start()
    for images in range(5000):
        journal.metrics({"loss": 1.0, "rate": 2.0}, images)
        if images == 500:
            before = tracemalloc.get_traced_memory()[0]
    assert tracemalloc.get_traced_memory()[0] - before < 20_000
    journal.close()
    journal = Journal(path)
    before = tracemalloc.get_traced_memory()[0]
    for images in range(4900, 5100):  # a replay, and on
        journal.metrics({"loss": 1.0, "rate": 2.0}, images)
    assert tracemalloc.get_traced_memory()[0] - before < 20_000
    tracemalloc.stop()
    journal.close()
    assert len(pairs(path)) == 1 + 2 * 5100
