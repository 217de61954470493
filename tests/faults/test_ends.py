"""How runs end otherwise than they should: told to stop, without room on the disk, hung, not finite."""

import signal

import pytest

from tests.helpers.faults.fault_scenarios import (
    NotHere,
    dead_in_a_save,
    disk_full_in_a_save,
    disk_full_to_the_last_byte,
    hung_disk,
    hung_rank,
    lost_rank,
    not_finite,
    requested_to_stop,
)
from tests.helpers.faults.final_evaluation import LONG, killed_at_the_end, requested_to_stop_at_the_end

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("rank", [None, 1], ids=["all ranks", "one rank"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal(harness, number, rank):
    requested_to_stop(harness, lambda ranks, _: ranks.signal(number, rank))


def test_the_stop_file(harness):
    def touch(_, run):
        (run / "stop").touch()

    requested_to_stop(harness, touch)


@pytest.mark.parametrize("rank", [None, 1], ids=["all ranks", "one rank"])
def test_a_signal_in_the_final_evaluation(harness, rank):
    requested_to_stop_at_the_end(harness, 2, rank, *LONG)


def test_a_signal_while_a_picture_is_drawn(harness):
    requested_to_stop_at_the_end(harness, 1, None, linger=60)


@pytest.mark.parametrize("world", [1, 2])
def test_a_kill_in_the_final_evaluation(harness, world):
    killed_at_the_end(harness, world)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("happens", [disk_full_in_a_save, disk_full_to_the_last_byte])
def test_a_full_disk(harness, happens, world):
    try:
        happens(harness, world)
    except NotHere as why:
        pytest.skip(str(why))


def test_numbers_that_are_not_finite(harness):
    not_finite(harness)


def test_the_others_end_when_a_rank_dies_in_a_save(harness):
    dead_in_a_save(harness)


@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_a_rank_that_loses_another_says_so_in_one_line(harness, engine):
    lost_rank(harness, engine)


@pytest.mark.parametrize("where", ["step", "log", "data", "evaluate_online", "save", "finish"])
def test_a_hung_rank_is_named_by_the_others(harness, where):
    hung_rank(harness, where)


def test_a_first_rank_that_hangs_is_named_too(harness):
    hung_rank(harness, "data", hung=0)


def test_a_checkpoint_that_a_disk_does_not_take_is_told(harness):
    hung_disk(harness)
