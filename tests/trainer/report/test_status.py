"""`hybrid-infomax status`: a row a run, whatever became of it."""

import json
import os
import sys
import time

import pytest

from tests.helpers.command_lines import process
from tests.helpers.run_folders import WORDS, write_run
from trainer import cli
from trainer.report.status import COLUMNS, TAIL, duration, read_status, table
from trainer.tracking.journal import Journal


@pytest.fixture
def outputs(tmp_path):
    return tmp_path / "outputs"


def begun(outputs, name="run", **more):
    """A run of 6,400 images whose journal and checkpoint are at 640."""
    run = write_run(outputs / name, WORDS["dim"], tensors={"model/encoder.a": [3]}, **{"images": 640, **more})
    (run / "journal.jsonl").unlink(missing_ok=True)
    journal = Journal(run / "journal.jsonl")
    journal.write("metric", "loss", 2.5, 640)
    journal.write("metric", "images_per_second", 1234.5, 640)
    return run, journal


def shown(capsys, *words):
    """The rows of the table, each a dictionary by column; all columns but the remark are one word or two."""
    assert cli.run(["status", *map(str, words)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    header, *rows = out.splitlines()
    assert header.split() == list(COLUMNS)
    return [row.split() for row in rows]


def test_a_run_that_is_written_is_running_and_may_be_asked_to_stop(outputs):
    run, journal = begun(outputs, status="")
    status = read_status(run)
    assert (status.state, status.images, status.rate, status.saved) == ("running", 640, 1234.5, 640)
    assert status.total == 896_000
    assert status.remark == ""
    (run / "stop").touch()
    assert read_status(run).remark == "asked to stop, by the file stop"
    journal.close()
    assert read_status(run).state == "ended"


@pytest.mark.parametrize("state", ["done", "stopped", "failed"])
def test_the_file_in_its_folder_says_how_a_run_ended(outputs, state):
    run, journal = begun(outputs, status=state, why="" if state == "done" else "SIGUSR1\nlate")
    journal.close()
    status = read_status(run)
    assert (status.state, status.images) == (state, 640)
    assert status.remark == ("" if state == "done" else "SIGUSR1 late")


def test_a_run_that_was_killed_and_goes_on_is_running(outputs):
    """The files of an earlier end are old where somebody writes."""
    run, journal = begun(outputs, status="failed", why="another rank has gone")
    assert (read_status(run).state, read_status(run).remark) == ("running", "")
    journal.close()


def test_the_images_are_those_of_the_last_record_also_behind_a_resume(outputs):
    run, journal = begun(outputs, status="")
    journal.write("resumed", "resumed", 320, 320)
    journal.write("parameter", "seed", 0, 0)
    assert read_status(run).images == 320
    journal.close()


def test_of_a_long_journal_the_end_alone_is_read(outputs):
    run, journal = begun(outputs, status="")
    journal.close()
    lines = [
        json.dumps({"images": n, "time": 1.0, "kind": "metric", "name": f"x{n}", "value": 0.5})
        for n in range(9999)
    ]
    (run / "journal.jsonl").write_text("\n".join(lines) + "\n")
    assert (run / "journal.jsonl").stat().st_size > 2 * TAIL
    status = read_status(run)
    assert (status.images, status.rate) == (9998, None)


def test_the_job_is_that_of_the_last_start(outputs):
    run, journal = begun(outputs)
    journal.close()
    assert read_status(run).job is None
    (run / "world.json").write_text(json.dumps({"processes": 1, "job": "4711"}))
    assert read_status(run).job == "4711"


def test_the_table(outputs):
    """Numbers to the right, words to the left; what is not known is a dash."""
    first, journal = begun(outputs, "first", status="stopped", why="SIGTERM")
    journal.close()
    os.utime(first / "journal.jsonl", (1000.0, 1000.0))
    second = write_run(outputs / "second", WORDS["dim"], status="")
    (second / "journal.jsonl").unlink(missing_ok=True)
    lines = table([read_status(first), read_status(second)], 1000.0 + 7200).splitlines()
    width = len(str(second))
    assert [line[width + 2 :].split() for line in lines] == [
        ["state", "images", "of", "images/s", "saved", "written", "job", "remark"],
        ["stopped", "640", "896,000", "1,234", "640", "2", "h", "ago", "-", "SIGTERM"],
        ["ended", "0", "896,000", "-", "-", "-", "-"],
    ]
    assert lines[1].index("640") + 3 == lines[2].index(" 0 ") + 2 == lines[0].index("images") + 6


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-3, "0 s"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 d")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


GARBAGE = b"\xff\xfe\x00garbage\x00\n\x80" * 9


@pytest.mark.parametrize("content", [b"", GARBAGE, b"[]\n", b"[" * 300, None], ids=range(5))
@pytest.mark.parametrize("name", ["recipe.yaml", "world.json", "journal.jsonl", "done", "failed"])
def test_a_damaged_file_is_a_remark_and_no_end(outputs, capsys, name, content):
    """None: a folder in the file's place."""
    run, journal = begun(outputs)
    journal.close()
    (run / name).unlink(missing_ok=True)
    if content is None:
        (run / name).mkdir()
    else:
        (run / name).write_bytes(content)
    (row,) = shown(capsys, outputs)
    assert row[0] == str(run)
    if name in ("recipe.yaml", "world.json"):
        assert name in " ".join(row)


def test_runs_at_any_depth_and_folders_without_one(outputs, capsys):
    for name in ("b", "deep/a"):
        begun(outputs, name)[1].close()
    (outputs / "empty").mkdir()
    assert cli.run(["status", str(outputs)]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[1:]] == [str(outputs / "b"), str(outputs / "deep/a")]
    assert err == f"{outputs / 'empty'}: no run there\n"


def test_it_is_answered_without_torch(outputs):
    begun(outputs)[1].close()
    ask = f"trainer.cli.run(['status', {str(outputs)!r}])"
    code = f"import sys, trainer.cli; {ask}; print('torch' in sys.modules)"
    done = process(sys.executable, "-c", code)
    assert done.out.splitlines()[-1] == "False", done.err


def test_asking_keeps_no_run_from_starting(outputs):
    """The question is a lock for a moment, and it ends with the question."""
    run, journal = begun(outputs)
    journal.close()
    assert read_status(run).state == "done"
    Journal(run / "journal.jsonl", wait=0.0).close()
    assert time.time() - (read_status(run).written or 0) < 86400
