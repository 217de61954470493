"""The thread that makes batches ahead: it stays ahead by its depth, passes errors on, and always ends."""

import subprocess
import sys
import threading
import time

import pytest
import torch

from data_pipelines.common.errors import UserError
from data_pipelines.image_options import ImageOptions
from data_pipelines.loader import Prefetch
from data_pipelines.plan import BatchShare, Plan
from data_pipelines.reader import Reader
from data_pipelines.views import Normalize, View
from tests.helpers.tiny_dataset import image_loader, pictures, write_dataset

IMAGES = ImageOptions(size=16, normalize=Normalize(), threads=2, device=torch.device("cpu"))


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture
def reader(tmp_path):
    """Of 96 pictures in shards of 24."""
    reader = Reader(write_dataset(tmp_path, pictures(96), 24), "train")
    yield reader
    reader.close()
    assert prefetch_threads() == []


def wait_until(true, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


UNCLOSED = """
import atexit, threading, time
from data_pipelines.loader import Prefetch
ended = lambda: print("ended" if "prefetch" not in [t.name for t in threading.enumerate()] else "runs")
atexit.register(ended)  # the last one called
items = Prefetch((time.sleep(0.01) for _ in range(10**6)), 2)
next(items)
"""


def test_a_process_that_exits_without_closing_ends_the_thread_first():
    """Inside DALI, it would abort the process: exit status 134."""
    done = subprocess.run([sys.executable, "-c", UNCLOSED], capture_output=True, text=True, check=True)
    assert done.stdout == "ended\n"


def endless(made: list[int]):
    while True:
        made.append(len(made))
        yield made[-1]


def test_prefetch_runs_ahead_by_its_depth_and_closes_while_full():
    made: list[int] = []
    items = Prefetch(endless(made), 3)
    wait_until(lambda: len(made) == 4)  # three wait, the fourth is in its hand
    time.sleep(0.05)
    assert len(made) == 4
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    wait_until(lambda: len(made) == 9)
    assert prefetch_threads()
    items.close()
    assert not prefetch_threads()
    with pytest.raises(StopIteration):
        next(items)  # and does not wait for ever
    items.close()  # once more does no harm


def test_an_error_comes_out_where_the_item_would_have():
    def failing():
        yield 1
        yield 2
        raise ValueError("of the third")

    items = Prefetch(failing(), 1)
    assert [next(items), next(items)] == [1, 2]
    for _ in range(2):
        with pytest.raises(ValueError, match="of the third"):
            next(items)
    items.close()
    ended = Prefetch(iter([5]), 4)
    assert list(ended) == [5]
    assert list(ended) == []
    ended.close()


def test_a_loader_closes_at_any_moment(reader):
    for wait in (0, 0.02, 0.1):
        plan = Plan(0, reader.shards, 2)
        loader = image_loader(reader, plan, IMAGES, [View(flip=0.5)], BatchShare(32), start=0, stop=10**9)
        time.sleep(wait)
        loader.close()
        assert not prefetch_threads()


def test_a_shard_that_vanishes_ends_the_run_with_one_line(reader):
    plan = Plan(0, reader.shards, 1)
    share = BatchShare(8)
    loader = image_loader(reader, plan, IMAGES, [View()], share, start=0, stop=960, prefetch=1)
    next(loader)
    for name in reader.names:
        (reader.root / name).unlink()
    with pytest.raises(UserError, match=r"train/00000\d.tar cannot be read .No such file"):
        list(loader)  # some are still open, and read to their end
    loader.close()
