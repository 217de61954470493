"""Which ranks a watchdog names, from what they publish in a store; real ranks that hang: tests/faults."""

import itertools
import json
import threading
from dataclasses import astuple, replace

import pytest
import torch.distributed as dist

from trainer.distributed import collectives, watchdog
from trainer.distributed.progress import Position
from trainer.distributed.watchdog import CLOSED, Report, Watchdog


@pytest.fixture
def store(monkeypatch):
    """The launcher's store, as rank 0 of three sees it."""
    store = dist.HashStore()
    monkeypatch.setattr(collectives, "world_size", lambda: 3)
    monkeypatch.setattr(collectives, "rank", lambda: 0)
    monkeypatch.setattr(collectives, "store", lambda: store)
    return store


@pytest.fixture
def culprits(store, monkeypatch):
    """Asks a watchdog at `position` of rank 0 once; the other ranks publish before and after, as listed."""

    def ask(position, before: dict, after: dict) -> str | None:
        def publish(reports):
            for rank, (beats, at) in reports.items():
                store.set(f"watchdog/{rank}", json.dumps([beats, *astuple(at)]))

        one = Watchdog(0, lambda line: None)  # without a limit it has no thread, which would publish too
        one._progress._process = position
        one._store, one._interval = store, 0
        waits = iter([publish, publish, publish])
        monkeypatch.setattr(one._closing, "wait", lambda seconds: next(waits)(after))
        publish(before)
        one._publish()
        return one._culprits()

    return ask


AT = Position(7, 640, "backward", in_step=True)
BEHIND = Position(6, 640, "forward", in_step=True)


def test_the_rank_that_is_behind_is_named_and_its_last_stage(culprits):
    line = culprits(AT, {1: (4, AT), 2: (4, BEHIND)}, {1: (5, AT), 2: (5, BEHIND)})
    assert line == (
        "rank 2 had last finished 'forward' of the step after 640 images and the others are further"
    )


def test_a_rank_that_publishes_no_more_is_named_before_any_that_is_behind(culprits):
    line = culprits(AT, {1: (4, AT), 2: (4, BEHIND)}, {1: (4, AT), 2: (5, BEHIND)})
    assert line == (
        "rank 1 does not answer and had last finished 'backward' of the step after 640 images "
        "when last heard of"
    )


def test_a_rank_that_never_published_is_silent(culprits):
    line = culprits(AT, {1: (4, AT)}, {1: (5, AT)})
    assert line.startswith("rank 2 does not answer and had last finished 'start' of the step after 0 images")


def test_equal_ranks_wait_for_each_other(culprits):
    assert culprits(AT, {1: (4, AT), 2: (4, AT)}, {1: (5, AT), 2: (5, AT)}) == (
        "every rank had last finished 'backward' of the step after 640 images and waits for the others"
    )


@pytest.mark.parametrize("who", ["this rank", "the slowest"])
def test_ranks_that_live_may_evaluate_for_any_time(culprits, who):
    resting = Position(6, 640, "log", in_step=False)
    mine, theirs = (resting, AT) if who == "this rank" else (AT, resting)
    assert culprits(mine, {1: (4, theirs), 2: (4, theirs)}, {1: (5, theirs), 2: (5, theirs)}) is None


def test_a_rank_that_has_closed_its_watchdog_is_not_silent(culprits):
    ended = Position(9, 640, "log", in_step=False)
    assert culprits(AT, {1: (4, AT), 2: (CLOSED, ended)}, {1: (5, AT), 2: (CLOSED, ended)}).startswith(
        "rank 0"
    )


def test_a_store_that_is_gone_is_named_in_place_of_ranks(culprits, store, monkeypatch):
    def gone(*_):
        raise RuntimeError("Connection reset by peer")

    for name in ("set", "get", "check"):
        monkeypatch.setattr(type(store), name, gone)
    assert culprits(AT, {}, {}) == "the store of the launcher, or of rank 0, does not answer"


def test_a_gpu_that_is_behind_is_named_where_all_processes_wait_at_the_same_place(culprits):
    """A process only starts work: all stop at the next wait, whichever GPU hangs."""
    ahead = "'after_step' of the step after 640 images"
    mine, behind = replace(AT, ahead=ahead), replace(BEHIND, ahead=ahead)
    line = culprits(mine, {1: (4, mine), 2: (4, behind)}, {1: (5, mine), 2: (5, behind)})
    assert line == (
        "rank 2 had last finished 'forward' of the step after 640 images on its GPU "
        "(its process: 'after_step' of the step after 640 images) and the others are further"
    )


@pytest.mark.slow
def test_a_gpu_that_stands_still_ends_the_run_and_not_one_that_works(store, monkeypatch, capsys):
    """Each event is completed by hand; the process is through with its step at once."""
    ended = threading.Event()

    def leave(status):
        assert status == 3
        ended.set()
        watch._closing.set()

    monkeypatch.setattr(watchdog.os, "_exit", leave)
    device, made = {"completed": 0}, []

    class Mark:
        def record(self):
            made.append(self)

        def query(self):
            return made.index(self) < device["completed"]

    watch = Watchdog(1.0, lambda line: None, Mark)
    watch._first_step = False
    for stage in ("zero_grad", "data", "forward", "backward"):
        watch.stage_done(stage, 640)
    watch.step_done()
    beats = itertools.count(1)

    def reports():
        """The other ranks live, and have ended the step."""
        others = Report(next(beats), replace(AT, stages=9, in_step=False))
        return {0: Report(next(beats), watch._progress.position()), 1: others, 2: others}

    monkeypatch.setattr(watch, "_reports", reports)
    for number in (1, 2, 3):  # slowly, but it goes on
        device["completed"] = number
        assert not ended.wait(0.7)
    assert ended.wait(10)
    watch.close()
    assert (
        "rank 0 had last finished 'forward' of the step after 640 images on its GPU "
        "(its process: 'backward' of the step after 640 images) and the others are further"
    ) in capsys.readouterr().err
