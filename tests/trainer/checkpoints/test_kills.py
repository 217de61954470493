"""SIGKILL between any two system calls of a save, and at random moments: what was saved is never lost."""

import itertools
import os
import random
import shutil
import signal
import sys
import time
from contextlib import suppress
from functools import partial

import pytest

from data_pipelines.common.files import replace_text
from tests.helpers.checkpoint_states import edit, flip, refuse, same, save, state
from trainer.checkpoints.format import verify
from trainer.checkpoints.load import load, newest
from trainer.checkpoints.retention import clean
from trainer.checkpoints.save import snapshot, write

CALLS = {
    "open",
    "write",
    "flush",
    "fsync",
    "close",
    "mkdir",
    "rename",
    "replace",
    "unlink",
    "rmdir",
    "__exit__",
}


def fork(work) -> int:
    """A child process that does `work` and ends, with status 0 if it did not raise; returns its id."""
    process = os.fork()
    if process == 0:
        status = 1
        with suppress(Exception):
            work()
            status = 0
        os._exit(status)
    return process


def ended(process: int) -> int:
    """How a child ended: its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killing_itself(work, moment: int):
    """`work`, with a SIGKILL at the given moment, counted before each call that touches files."""

    def act():
        moments = itertools.count(1)

        def profile(frame, event, call):
            if event == "c_call" and call.__name__ in CALLS and next(moments) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(profile)
        work()
        sys.setprofile(None)

    return act


def write_one(folder, images, rank, world, **options):
    write(snapshot(state(images), rank, world), folder, images, {}, "a", **options)


@pytest.mark.parametrize("damaged", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_killed_between_any_two_calls_of_a_save(tmp_path, damaged):
    """Of images 200, where that name is free, or where a damaged checkpoint bears it."""
    before = tmp_path / "before"
    save(before, 100)
    if damaged:
        edit(save(before, 200) / "manifest.json", flip(9))
    outcomes = []
    for moment in itertools.count(1):
        folder = tmp_path / str(moment)
        shutil.copytree(before, folder)
        status = ended(fork(killing_itself(partial(write_one, folder, 200, 0, 1, keep=1), moment)))
        checkpoint = newest(folder, refuse if not damaged else lambda _: None)
        assert same(load(checkpoint), state(checkpoint.images))
        outcomes.append(checkpoint.images)
        assert damaged or all(verify(path) for path in folder.glob("images-*"))
        clean(folder)
        save(folder, 300, keep=1)
        assert newest(folder, refuse).images == 300
        assert os.listdir(folder) == ["images-000000000300"]
        shutil.rmtree(folder)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert len(outcomes) > 40
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {100, 200}


def test_killed_while_replacing_text(tmp_path):
    path = tmp_path / "results.json"
    replace_text(path, "old")
    contents = []
    for moment in itertools.count(1):
        status = ended(fork(killing_itself(partial(replace_text, path, "new"), moment)))
        contents.append(path.read_text())
        replace_text(path, "old")
        assert os.listdir(tmp_path) == ["results.json"]
        if status == 0:
            break
    assert len(contents) > 5
    assert contents == sorted(contents, reverse=True)
    assert set(contents) == {"old", "new"}


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_ranks_killed_between_any_two_calls(tmp_path, victim):
    save(tmp_path / "before", 100, world=2)
    for moment in itertools.count(1):
        folder = tmp_path / str(moment)
        shutil.copytree(tmp_path / "before", folder)
        works = [partial(write_one, folder, 200, r, 2, keep=1, timeout=0.3) for r in range(2)]
        works[victim] = killing_itself(works[victim], moment)
        statuses = [ended(process) for process in [fork(work) for work in works]]
        checkpoint = newest(folder, refuse)
        assert same(load(checkpoint), state(checkpoint.images))
        clean(folder)
        save(folder, 300, world=3, keep=1)
        assert newest(folder, refuse).images == 300
        assert os.listdir(folder) == ["images-000000000300"]
        shutil.rmtree(folder)
        if statuses[victim] == 0:
            assert (statuses, checkpoint.images) == ([0, 0], 200)
            break
    assert moment > 10


def save_on(folder, rank, world, channel):
    """A rank of a run that starts from the newest checkpoint and saves every 10 images, telling of each."""
    checkpoint = newest(folder, refuse)
    images = checkpoint.images if checkpoint else 0
    assert not checkpoint or same(load(checkpoint), state(images))
    while True:
        images += 10
        write(snapshot(state(images), rank, world), folder, images, {}, f"from-{images}", keep=2, timeout=5)
        if rank == 0:
            os.write(channel, images.to_bytes(8, "little"))


def kill_at_random(folder, kills: int, world: int) -> int:
    began = time.monotonic()
    save(folder / "timed")
    most = max(0.15, 8 * (time.monotonic() - began))  # several saves, however long a flush takes here
    folder, dice, saved = folder / "killed", random.Random(world), 0
    folder.mkdir()
    for _ in range(kills):
        clean(folder)
        reader, writer = os.pipe()
        processes = [fork(partial(save_on, folder, r, world, writer)) for r in range(world)]
        os.close(writer)
        time.sleep(dice.uniform(0, most))
        for process in processes:
            os.kill(process, signal.SIGKILL)
        assert [ended(process) for process in processes] == [-signal.SIGKILL] * world
        while message := os.read(reader, 8):
            saved = int.from_bytes(message, "little")
        os.close(reader)
        checkpoint = newest(folder, refuse)
        assert (checkpoint.images if checkpoint else 0) in (saved, saved + 10)
        assert not checkpoint or same(load(checkpoint), state(checkpoint.images))
        assert all(verify(path) for path in folder.glob("images-*"))
        saved = checkpoint.images if checkpoint else 0
    clean(folder)
    save(folder, saved + 10, keep=2)
    assert len(os.listdir(folder)) == 2
    return saved


def test_killed_at_random_moments(tmp_path):
    assert kill_at_random(tmp_path, 20, world=1) > 0


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 4])
def test_killed_at_many_random_moments(tmp_path, world):
    assert kill_at_random(tmp_path, 60, world) > 0
