"""Requests to stop, where they raise: at the end of a run, when nothing can be lost."""

import os
import signal
import time
from contextlib import suppress

import pytest

from trainer.distributed import signals
from trainer.distributed.signals import Stopped, StopRequest


@pytest.fixture
def stop_request(monkeypatch):
    monkeypatch.setattr(signals, "RAISE_AGAIN", 0.1)
    before = {number: signal.getsignal(number) for number in (*signals.SIGNALS, signal.SIGALRM)}
    stop_request = StopRequest()
    yield stop_request
    stop_request.ignore()
    stop_request.close()
    assert {number: signal.getsignal(number) for number in before} == before


def send_sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0)  # where Python runs the handler


class Finalized:
    """Python swallows whatever a finalizer raises."""

    def __del__(self):
        send_sigterm()


def test_a_request_raises_only_when_all_is_saved(stop_request):
    send_sigterm()
    assert stop_request.received == "SIGTERM"
    with pytest.raises(Stopped):
        stop_request.raise_immediately()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_finalizer_swallows_is_raised_again(stop_request):
    stop_request.raise_immediately()
    Finalized()
    assert stop_request.received == "SIGTERM"
    with pytest.raises(Stopped):
        time.sleep(5)


def test_code_that_suppresses_errors_does_not_suppress_it(stop_request):
    def draw() -> None:
        with suppress(Exception):
            send_sigterm()

    stop_request.raise_immediately()
    with pytest.raises(Stopped):
        draw()


def test_nothing_is_raised_once_requests_are_ignored(stop_request):
    stop_request.raise_immediately()
    with pytest.raises(Stopped):
        send_sigterm()
    stop_request.ignore()
    time.sleep(0.3)
    send_sigterm()
    time.sleep(0.3)


def test_a_stop_file_made_before_the_end_is_found_there(tmp_path):
    stop_request = StopRequest(tmp_path / "stop")
    try:
        (tmp_path / "stop").touch()
        with pytest.raises(Stopped):
            stop_request.raise_immediately()
        assert stop_request.received == f"the file {tmp_path / 'stop'}"
    finally:
        stop_request.ignore()
        stop_request.close()


def test_the_first_of_several_signals_is_the_reason(stop_request):
    """A launcher sends SIGTERM to the ranks that are left when one has ended of Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)
    send_sigterm()
    assert stop_request.received == "SIGINT"


def test_a_signal_before_there_were_handlers(tmp_path, monkeypatch):
    (tmp_path / "request").write_text("USR1\n")
    monkeypatch.setenv("STOP_REQUEST_FILE", str(tmp_path / "request"))
    stop_request = StopRequest()
    try:
        assert stop_request.received == "USR1"
        assert stop_request.should_stop()
    finally:
        stop_request.close()


def test_the_status_of_a_stopped_run(monkeypatch):
    assert signals.status_of_stopped() == 1
    monkeypatch.setenv("STATUS_OF_STOPPED", "0")
    assert signals.status_of_stopped() == 0
