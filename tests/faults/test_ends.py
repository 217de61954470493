"""How runs end otherwise than they should: told to stop, without room on the disk, hung, not finite."""

import signal

import pytest

from tests.helpers.faults.ends_of_runs import LONG, killed_at_the_end, told_to_stop_at_the_end
from tests.helpers.faults.kinds_of_faults import (
    NotHere,
    dead_in_a_save,
    disk_full_in_a_save,
    disk_full_to_the_last_byte,
    hung_disk,
    hung_rank,
    lost_rank,
    not_finite,
    told_to_stop,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("rank", [None, 1], ids=["all ranks", "one rank"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal(stand, number, rank):
    told_to_stop(stand, lambda ranks, _: ranks.signal(number, rank))


def test_the_stop_file(stand):
    def touch(_, run):
        (run / "stop").touch()

    told_to_stop(stand, touch)


@pytest.mark.parametrize("rank", [None, 1], ids=["all ranks", "one rank"])
def test_a_signal_in_the_final_evaluation(stand, rank):
    told_to_stop_at_the_end(stand, 2, rank, *LONG)


def test_a_signal_while_a_picture_is_drawn(stand):
    told_to_stop_at_the_end(stand, 1, None, linger=60)


@pytest.mark.parametrize("world", [1, 2])
def test_a_kill_in_the_final_evaluation(stand, world):
    killed_at_the_end(stand, world)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("happens", [disk_full_in_a_save, disk_full_to_the_last_byte])
def test_a_full_disk(stand, happens, world):
    try:
        happens(stand, world)
    except NotHere as why:
        pytest.skip(str(why))


def test_numbers_that_are_not_finite(stand):
    not_finite(stand)


def test_the_others_end_when_a_rank_dies_in_a_save(stand):
    dead_in_a_save(stand)


@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_a_rank_that_loses_another_says_so_in_one_line(stand, engine):
    lost_rank(stand, engine)


@pytest.mark.parametrize("where", ["step", "log", "data", "watch", "save", "finish"])
def test_a_hung_rank_is_named_by_the_others(stand, where):
    hung_rank(stand, where)


def test_a_first_rank_that_hangs_is_named_too(stand):
    hung_rank(stand, "data", hung=0)


def test_a_checkpoint_that_a_disk_does_not_take_is_told(stand):
    hung_disk(stand)
