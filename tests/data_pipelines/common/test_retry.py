"""Reads that fail for a while: tried again, told once, given up in time, and never in the way of an end."""

import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipelines.access import Access
from data_pipelines.common.errors import UserError
from data_pipelines.common.retry import Interrupted, Retry, TransientError
from data_pipelines.dali import in_order
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.image_options import ImageOptions
from data_pipelines.loader import Loader
from data_pipelines.plan import BatchShare, Plan
from data_pipelines.reader import Reader
from data_pipelines.views import Normalize, View
from tests.helpers.tiny_dataset import image_loader, pictures, write_dataset

IMAGES = ImageOptions(size=16, normalize=Normalize(), threads=1, device=torch.device("cpu"))


@pytest.fixture
def root(tmp_path) -> Path:
    """48 pictures in 4 shards, and beside them a copy that stays whole."""
    write_dataset(tmp_path / "data", pictures(48, 8, 8), 12)
    shutil.copytree(tmp_path / "data", tmp_path / "whole")
    return tmp_path / "data"


def make_reader(root: Path, retry_seconds: float) -> Reader:
    return Reader(load_dataset(root, access=Access(retry_seconds=retry_seconds)), "train")


def read_all(reader: Reader, retry: Retry | None = None) -> list[bytes]:
    try:
        return [image.tobytes() for image in reader.read(np.arange(reader.images), retry)]
    finally:
        reader.close()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ["train/000001.tar", "train/000001.npy"])
@pytest.mark.parametrize("damage", [Path.unlink, truncate, make_folder])
def test_what_comes_back_is_read_as_if_nothing_had_happened(root, damage, name):
    expected, lines = read_all(make_reader(root.parent / "whole", 0)), []
    path, reader = root / name, make_reader(root, 20)

    def mend() -> None:
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        shutil.copy(root.parent / "whole" / name, path)

    damage(path)
    timer = threading.Timer(0.5, mend)
    timer.start()
    assert read_all(reader, Retry(20, lines.append)) == expected
    timer.join()
    assert len(lines) == 2
    assert lines[0].startswith(str(path))
    assert lines[0].endswith("; trying again for 20 s")
    assert lines[1].startswith(f"{path} can be read again, after ")
    assert 0.3 < float(lines[1].split()[-2]) < 15


def test_what_stays_away_is_said_with_how_long_it_was_tried(root):
    reader = make_reader(root, 0.6)
    (root / "train/000002.tar").unlink()
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        read_all(reader)
    assert 0.6 <= time.monotonic() - began < 20
    assert str(error.value) == (
        f"{root}/train/000002.tar cannot be read (No such file or directory), tried again for 0.6 s; "
        f"check with: python -m data_pipelines.shards verify {root}"
    )


def test_what_is_missing_at_the_start_is_said_at_once(root):
    (root / "train/000002.tar").unlink()
    began = time.monotonic()
    with pytest.raises(UserError, match=r"train/000002.tar cannot be found"):
        load_dataset(root, access=Access(retry_seconds=60))
    assert time.monotonic() - began < 20


def test_pauses_double_up_to_five_seconds():
    pauses, lines, attempts = [], [], []
    retry = Retry(30, lines.append)
    retry.stopped.wait = lambda seconds: pauses.append(seconds)  # nobody waits for this test

    def attempt() -> str:
        attempts.append(1)
        if len(attempts) < 10:
            raise TransientError("x", " fails", "mend it")
        return "value"

    assert retry(attempt) == "value"
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5], abs=0.01)
    assert lines[0] == "x fails; trying again for 30 s"
    assert re.fullmatch(r"x can be read again, after 0\.\d s", lines[1])
    assert len(lines) == 2
    assert not retry.failing


def loader_in_trouble(
    root: Path, lines: list[str], stopping: Callable[[], bool] = lambda: False, accumulate: int = 1
) -> tuple[Loader, Reader]:
    """A loader that has made its first batches and now waits for shards that are gone."""
    reader = Reader(load_dataset(root, access=Access(retry_seconds=1000)), "train", stopping)
    plan, share = Plan(0, reader.shards, 1), BatchShare(4, accumulate=accumulate)
    loader = image_loader(reader, plan, IMAGES, [View()], share, warn=lines.append, start=0, stop=480)
    next(loader)
    for path in root.glob("train/*.tar"):
        path.unlink()
    end = time.monotonic() + 20
    while not lines:
        assert time.monotonic() < end
        if loader._items._queue.qsize():
            next(loader)
        time.sleep(0.01)
    return loader, reader


@pytest.mark.parametrize("first", ["loader", "reader"])
def test_closing_waits_for_nothing(root, first):
    lines: list[str] = []
    loader, reader = loader_in_trouble(root, lines)
    time.sleep(4.0)  # in a pause that lasts until 6.3
    began = time.monotonic()
    for one in (loader, reader) if first == "loader" else (reader, loader):
        one.close()
    assert time.monotonic() - began < 1.5
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    assert len(lines) == 1


def drain(loader: Loader) -> None:
    """Takes batches for as long as there are any."""
    for _ in loader:
        pass


def test_whoever_is_told_to_stop_leaves_before_a_step_but_not_within(root):
    lines: list[str] = []
    stop = threading.Event()
    loader, reader = loader_in_trouble(root, lines, stop.is_set)
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Interrupted):
        drain(loader)
    assert 0.2 < time.monotonic() - began < 20
    loader.close()
    reader.close()


def test_an_evaluation_is_left_at_any_time(root):
    stop, lines = threading.Event(), []
    reader = Reader(load_dataset(root, access=Access(retry_seconds=1000)), "train", stop.is_set)
    batches = in_order(reader, IMAGES, np.arange(48), 4, lines.append)
    next(batches)
    for path in root.glob("train/*.tar"):
        path.unlink()
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(Interrupted):
        list(batches)
    assert len(lines) == 1
    reader.close()


def test_a_step_of_several_micro_batches_is_not_left_within(root):
    lines: list[str] = []
    stop = threading.Event()
    loader, reader = loader_in_trouble(root, lines, stop.is_set, accumulate=2)
    stop.set()
    with pytest.raises(Interrupted):
        drain(loader)
    assert loader.batches_given % 2 == 0
    loader.close()
    reader.close()
