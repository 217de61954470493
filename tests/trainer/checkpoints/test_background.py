"""A checkpoint that is written beside the next steps."""

import threading

import pytest

from data_pipelines.common.errors import UserError
from trainer.checkpoints.background import BackgroundWriter


def test_steps_go_on_while_a_write_is_under_way():
    begun, may_end, written = threading.Event(), threading.Event(), []

    def write():
        begun.set()
        may_end.wait(30)
        written.append("checkpoint")

    writer = BackgroundWriter(pytest.fail)
    writer.start(write)
    assert begun.wait(30)  # it runs, and this thread is not held up by it
    assert writer.in_progress
    assert not written
    may_end.set()
    writer.wait()
    assert written == ["checkpoint"]
    assert not writer.in_progress


def test_an_error_sounds_the_alarm_at_once_and_comes_out_of_wait_once():
    alarm = threading.Event()

    def write():
        raise UserError("cannot write: no room")

    writer = BackgroundWriter(alarm.set)
    writer.start(write)
    assert alarm.wait(30)
    with pytest.raises(UserError, match="no room"):
        writer.wait()
    writer.wait()
    writer.start(lambda: None)  # a later one is another matter
    writer.wait()


def test_a_write_that_takes_too_long_is_told():
    end = threading.Event()
    writer = BackgroundWriter(pytest.fail, limit=0.1)
    writer.start(lambda: end.wait(30))
    with pytest.raises(UserError, match=r"rank 0 has not written its part of the checkpoint within 0\.1 s"):
        writer.wait()
    end.set()


def test_where_training_has_failed_already_an_error_is_only_told():
    lines = []
    writer = BackgroundWriter(lambda: None)
    writer.start(lambda: 1 / 0)
    writer.abandon(lines.append, None)
    assert lines == ["warning: the last checkpoint was not saved: division by zero"]


def test_what_is_still_being_written_then_is_given_up():
    lines, end = [], threading.Event()
    writer = BackgroundWriter(pytest.fail)
    writer.start(lambda: end.wait(30))
    writer.abandon(lines.append, 0.1)
    end.set()
    assert lines == ["warning: the last checkpoint was still being written after 0.1 s: given up"]
