"""The cache: never larger than it may be, filled in the plan's order, shared by processes, closed at once."""

import errno
import fcntl
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipelines.common.errors import UserError
from data_pipelines.common.retry import Interrupted, Retry, TransientError
from data_pipelines.dali import in_order
from data_pipelines.dataset import Dataset
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.image_options import ImageOptions
from data_pipelines.plan import BatchShare, Plan
from data_pipelines.reader import Reader
from data_pipelines.remote import cache as cache_module
from data_pipelines.remote import fetcher as fetcher_module
from data_pipelines.remote.cache import ShardCache, index_of, tar_of
from data_pipelines.views import Normalize, View
from tests.helpers.ranged_server import opened
from tests.helpers.tiny_dataset import image_loader, samples, write_samples

ROOT = Path(__file__).resolve().parents[3]
IMAGES = ImageOptions(size=16, normalize=Normalize(), threads=1, device=torch.device("cpu"))
WINDOW, BATCH, EPOCHS = 3, 8, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    """84 pictures in 12 shards: 4 windows an epoch."""
    return write_samples(tmp_path_factory.mktemp("served"), {"train": samples(84)}, 7)


def needed(data: Dataset, window: int = WINDOW) -> int:
    """Bytes of the largest `window` shards with their indices, and dataset.json."""
    sizes = sorted((s.bytes + s.index_bytes for s in data.splits["train"].shards), reverse=True)
    return sum(sizes[:window]) + (data.root / "dataset.json").stat().st_size


@contextmanager
def training(dataset: Dataset, epochs: int = EPOCHS, **options):
    reader = Reader(dataset, "train")
    plan, stop = Plan(5, reader.shards, WINDOW), epochs * reader.images // BATCH * BATCH
    share = BatchShare(BATCH)
    loader = image_loader(reader, plan, IMAGES, [View(flip=0.5)], share, start=0, stop=stop, **options)
    try:
        yield loader
    finally:
        loader.close()
        reader.close()


def batches(dataset: Dataset) -> list[tuple]:
    with training(dataset) as loader:
        return [
            (batch.ids.tolist(), batch.label.tolist(), batch.views[0].numpy().tobytes()) for batch in loader
        ]


@contextmanager
def measured(folder: Path):
    """The largest size that the files in a folder have together, in a list, at any time."""
    stop, largest = threading.Event(), [0]

    def measure() -> None:
        while not stop.is_set():
            size = 0
            for path in folder.rglob("*"):
                with suppress(OSError):
                    size += path.stat().st_size * path.is_file()
            largest[0] = max(largest[0], size)
            time.sleep(0.001)

    thread = threading.Thread(target=measure)
    thread.start()
    yield largest
    stop.set()
    thread.join()


@pytest.mark.parametrize("windows", [1, 1.5, 2, 3])
def test_a_run_is_the_same_in_any_cache_that_holds_a_window(data, server, tmp_path, windows):
    bound = int(needed(data) * windows)
    with measured(tmp_path) as largest:
        assert batches(opened(server.address, tmp_path, cache_bytes=bound)) == batches(data)
    assert 0.5 * bound < largest[0] <= bound
    if windows >= 3:  # nothing is removed that is still needed, also where two windows meet: once an epoch
        assert max(Counter(request.name for request in server.requests).values()) <= EPOCHS


def test_a_cache_that_holds_no_window_is_refused(data, server, tmp_path):
    bound = needed(data) - 1
    reader = Reader(opened(server.address, tmp_path, cache_bytes=bound), "train")
    with pytest.raises(
        UserError, match=rf"^data\.cache_bytes={bound} .* 3 shards, .* take up to {bound + 1} b"
    ):
        reader.check_room(WINDOW)
    reader.check_room(WINDOW - 1)
    reader.close()
    Reader(data, "train").check_room(10**6)  # a folder needs no cache


def shards_in_order(data: Dataset, windows: int) -> list[str]:
    """Of the first windows of the plan."""
    reader = Reader(data, "train")
    plan, names, position = Plan(5, reader.shards, WINDOW), [], 0
    for _ in range(windows):
        now, _ = plan.ahead(position)
        names += [reader.names[shard] for shard in np.searchsorted(reader.first, now, side="right") - 1]
        position += sum(reader.shards[reader.names.index(name)] for name in names[-WINDOW:])
    return names


def wait_until(true, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_shards_come_in_the_plans_order_two_windows_at_a_time(data, server, tmp_path):
    with training(opened(server.address, tmp_path), prefetch=1) as loader:
        next(loader)
        wait_until(lambda: len(server.names(".tar")) == 2 * WINDOW)
        time.sleep(0.2)
        assert server.names(".tar") == shards_in_order(data, 2)  # and no more, while nobody needs it
        for _ in loader:
            pass
    assert server.names(".tar") == shards_in_order(data, 4)
    assert {request.status for request in server.requests} == {200}


def test_an_evaluation_fetches_ahead_as_well(data, server, tmp_path):
    server.pause, ids = 0.005, np.arange(84)
    results = []
    for dataset in (data, opened(server.address, tmp_path, cache_bytes=needed(data, 4))):
        reader = Reader(dataset, "train")
        results.append(
            [(view.numpy().tobytes(), *y.tolist()) for view, y in in_order(reader, IMAGES, ids, 7)]
        )
        reader.close()
    assert results[0] == results[1]
    assert server.names(".tar") == [shard.name for shard in data.splits["train"].shards]


# ---- several processes -----------------------------------------------------------------------------

READ = """
import sys
import numpy as np
from data_pipelines.access import Access
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.reader import Reader

_, local, address, cache, bound, seed = sys.argv
expected, actual = (
    Reader(load_dataset(root, access=Access(20.0, cache, int(bound))), "train") for root in (local, address)
)
for ids in np.array_split(np.random.default_rng(int(seed)).permutation(expected.images), 20):
    assert [i.tobytes() for i in expected.read(ids)] == [i.tobytes() for i in actual.read(ids)]
"""


def process(data: Dataset, address: str, cache: Path, bound: int, seed: int) -> subprocess.Popen:
    words = [sys.executable, "-c", READ, data.root, address, cache, bound, seed]
    return subprocess.Popen(list(map(str, words)), cwd=ROOT, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("windows", [1, 100])
def test_processes_share_a_cache(data, server, tmp_path, windows):
    server.pause, bound = 0.002, needed(data, 4) * windows
    with measured(tmp_path) as largest:
        readers = [process(data, server.address, tmp_path, bound, seed) for seed in range(3)]
        assert [reader.communicate(timeout=120)[1] for reader in readers] == [""] * 3
    assert largest[0] <= bound
    if windows == 100:
        counts = Counter(request.name for request in server.requests if request.name != "dataset.json")
        assert set(counts.values()) == {1}
        assert len(counts) == 2 * 12


def test_what_a_killed_process_had_fetched_is_gone_on_with(data, server, tmp_path):
    server.pause = 0.1
    killed = process(data, server.address, tmp_path, 10**9, 0)
    wait_until(lambda: any(path.stat().st_size > 4096 for path in tmp_path.rglob("*.tar.part")))
    killed.kill()
    killed.communicate()
    server.pause = 0.0
    assert process(data, server.address, tmp_path, 10**9, 0).communicate(timeout=60)[1] == ""
    assert [request.start for request in server.requests if request.start] > [4000]
    assert not list(tmp_path.rglob("*.part"))


def test_a_process_that_hangs_at_a_file_is_told_of(data, server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fetcher_module, "TIMEOUT", 0.2)
    dataset = opened(server.address, tmp_path, retry_seconds=0.5)
    reader, first = Reader(dataset, "train"), data.splits["train"].shards[0]
    part = dataset.root / f"{tar_of(first).name}.part"
    part.parent.mkdir()
    with open(part, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(
            UserError, match=r"000000\.tar is being fetched by another process, .* tried again"
        ):
            reader.read(np.arange(3))
    assert len(reader.read(np.arange(3))) == 3  # once it has gone
    reader.close()


# ---- what else may happen to it --------------------------------------------------------------------


def test_what_was_damaged_in_the_cache_is_fetched_again(data, server, tmp_path):
    dataset = opened(server.address, tmp_path)
    before = batches(dataset)
    for number, path in enumerate(sorted(dataset.root.glob("*/*"))):
        with open(path, "r+b") as file:
            file.truncate(number)
    (dataset.root / tar_of(data.splits["train"].shards[3]).name).unlink()
    (dataset.root / "notes.txt").write_text("not ours")
    assert batches(dataset) == before
    assert (dataset.root / "notes.txt").read_text() == "not ours"
    assert max(Counter(server.names()).values()) == 1


def test_a_cache_that_cannot_be_written_is_said(data, server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\); .* data\.cache"):
        Reader(opened(server.address, tmp_path / "file"), "train")


def test_each_machine_has_a_cache_of_its_own(data, server, tmp_path):
    """The folder that rank 0 told the others is not theirs."""
    dataset = replace(opened(server.address, tmp_path / "mine"), root=tmp_path / "that of rank 0")
    assert batches(dataset) == batches(data)
    assert not dataset.root.exists()


def test_a_file_that_is_gone_again_and_again_is_told(data, server, tmp_path, monkeypatch):
    reader = Reader(opened(server.address, tmp_path, retry_seconds=0.0), "train")
    monkeypatch.setattr(reader._fetcher, "get", lambda *_: None)
    with pytest.raises(UserError, match="is removed again and again"):
        reader.read(np.arange(3))
    reader.close()


def test_a_cache_that_is_removed_while_it_is_read_is_filled_again(data, server, tmp_path):
    reader = Reader(opened(server.address, tmp_path, retry_seconds=0.0), "train")
    shutil.rmtree(tmp_path)
    assert len(reader.read(np.arange(10))) == 10
    reader.close()


def test_a_cache_on_a_file_system_without_locks(data, server, tmp_path, monkeypatch):
    def flock(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert batches(opened(server.address, tmp_path, cache_bytes=needed(data))) == batches(data)
    assert not list(tmp_path.rglob("*.part"))


def test_whoever_hangs_with_the_cache_locked_is_told_of(data, server, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "QUIET", 0.3)
    cache, shard = ShardCache(opened(server.address, tmp_path)), data.splits["train"].shards[0]
    with open(cache.folder / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TransientError, match=r"\.lock has been locked for 0\.3 s"):
            cache.fetch(tar_of(shard), [set()], threading.Event())
        stop = threading.Event()
        stop.set()
        with pytest.raises(Interrupted):
            cache.fetch(index_of(shard), [set()], stop)
    assert cache.fetch(tar_of(shard), [set()], threading.Event())


def test_what_another_has_just_finished_leaves_no_beginning_behind(data, server, tmp_path, monkeypatch):
    cache, file = ShardCache(opened(server.address, tmp_path)), tar_of(data.splits["train"].shards[0])
    make_room = cache._make_room

    def finished_meanwhile(file, keep) -> None:
        cache.path(file).parent.mkdir()
        shutil.copy(data.root / file.remote_name, cache.path(file))
        make_room(file, keep)

    monkeypatch.setattr(cache, "_make_room", finished_meanwhile)
    assert cache.fetch(file, [set()], threading.Event())
    assert server.names(".tar") == []
    assert not list(tmp_path.rglob("*.part"))


def test_what_others_push_out_is_not_fetched_ahead_again_at_once(data, server, tmp_path):
    """Training, and an evaluation in its midst, would push each other's files out for ever."""
    fetcher = fetcher_module.Fetcher(ShardCache(opened(server.address, tmp_path)))
    files = [tar_of(shard) for shard in data.splits["train"].shards[:2]]
    fetcher.ahead(files[:1], [])
    wait_until(lambda: fetcher._fetched == set(files[:1]))
    fetcher.cache.path(files[0]).unlink()
    assert fetcher._next(time.monotonic()) is None
    fetcher.get(files[0], Retry())  # but when somebody waits for it
    fetcher.cache.path(files[0]).unlink()
    fetcher.ahead(files, [])  # or with the next announcement
    wait_until(lambda: fetcher._fetched == set(files))
    requested = [request.name for request in server.requests if request.name.endswith(".tar")]
    assert requested == [
        files[0].remote_name,
        files[0].remote_name,
        files[0].remote_name,
        files[1].remote_name,
    ]
    fetcher.close()


def test_nobody_waits_without_limit_for_a_file_that_rests(data, server, tmp_path):
    fetcher = fetcher_module.Fetcher(ShardCache(opened(server.address, tmp_path)))
    file = tar_of(data.splits["train"].shards[0])
    fetcher._requested[file], fetcher._paused[file] = Future(), 100.0
    assert fetcher._next(99.9) is None
    assert fetcher._pause(99.9) == pytest.approx(0.1)  # whatever the clock says by now
    assert fetcher._next(100.0) == file


def test_the_cache_is_in_the_users_cache_folder_by_default(data, server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    dataset = load_dataset(server.address)
    assert dataset.root == tmp_path / ".cache/hybrid-infomax" / data.fingerprint[:16]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert load_dataset(server.address).root.is_relative_to(tmp_path / "elsewhere")


def fetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name in ("fetch", "prefetch")]


@pytest.mark.parametrize("fault", ["down", "silent", "slow"])
def test_a_run_ends_at_once_whatever_the_server_does(data, server, tmp_path, fault):
    dataset, lines = opened(server.address, tmp_path, retry_seconds=1000.0), []
    if fault == "down":
        server.down()
    elif fault == "silent":
        for shard in data.splits["train"].shards:
            server.spoil(shard.name, "silent")
    else:
        server.pause = 1.0
    with training(dataset, warn=lines.append) as loader:
        if fault == "down":
            wait_until(lambda: lines)
        else:
            wait_until(lambda: len(server.requests) > 1)
        time.sleep(0.2)
        began = time.monotonic()
        loader.close()
        assert time.monotonic() - began < 5
    assert time.monotonic() - began < 8  # with the reader
    if fault == "down":
        server.up()
        assert not fetch_threads()
    server.released.set()
    wait_until(lambda: not fetch_threads())
