"""Requests to stop, where they raise: at the end of a run, when nothing can be lost."""

import os
import signal
import time
from contextlib import suppress

import pytest

from trainer.distributed import signals
from trainer.distributed.signals import Stopped, StopRequest


@pytest.fixture
def vote(monkeypatch):
    monkeypatch.setattr(signals, "LOST", 0.1)
    before = {number: signal.getsignal(number) for number in (*signals.SIGNALS, signal.SIGALRM)}
    vote = StopRequest()
    yield vote
    vote.ignore()
    vote.close()
    assert {number: signal.getsignal(number) for number in before} == before


def tell() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0)  # where the signal is met


class Finalized:
    """Python makes light of whatever a finalizer raises."""

    def __del__(self):
        tell()


def test_a_request_raises_only_when_all_is_saved(vote):
    tell()
    assert vote.received == "SIGTERM"
    with pytest.raises(Stopped):
        vote.raise_immediately()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_finalizer_swallows_is_raised_again(vote):
    vote.raise_immediately()
    Finalized()
    assert vote.received == "SIGTERM"
    with pytest.raises(Stopped):
        time.sleep(5)


def test_no_handler_of_errors_takes_it_for_one(vote):
    def drawn() -> None:
        with suppress(Exception):
            tell()

    vote.raise_immediately()
    with pytest.raises(Stopped):
        drawn()


def test_nothing_is_raised_once_requests_are_not_heeded(vote):
    vote.raise_immediately()
    with pytest.raises(Stopped):
        tell()
    vote.ignore()
    time.sleep(0.3)
    tell()
    time.sleep(0.3)


def test_a_stop_file_made_before_the_end_is_found_there(tmp_path):
    vote = StopRequest(tmp_path / "stop")
    try:
        (tmp_path / "stop").touch()
        with pytest.raises(Stopped):
            vote.raise_immediately()
        assert vote.received == f"the file {tmp_path / 'stop'}"
    finally:
        vote.ignore()
        vote.close()
