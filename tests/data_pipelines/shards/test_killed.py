"""Shards are whole or not there at all, whoever is killed and however many make them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from data_pipelines.common.errors import UserError
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.shards.make import make
from data_pipelines.sources.tars import index_shard
from tests.helpers.file_digests import digests
from tests.helpers.synthetic_cifar import write_folder

ROOT = Path(__file__).resolve().parents[3]


def start(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "data_pipelines.shards", *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, **options)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_moment_the_same_command_finishes_it(tmp_path, workers):
    raw = write_folder(tmp_path, per_batch=500)
    whole = make("cifar10", tmp_path / "whole", raw, images_per_shard=100, workers=1, progress=False)
    to = tmp_path / "to"
    arguments = ("source=cifar10", f"from={raw}", f"to={to}", "shard=100", f"workers={workers}")
    kept = {}
    for wanted in (0, 12, 25):  # of 30 shards
        process = start(*arguments)
        while (process.poll() is None and len(list(to.glob("*/*.npy"))) < wanted) or not to.exists():
            time.sleep(0.002)
        workers_of_it = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        waiting = still_there(workers_of_it)
        for worker in waiting:
            worker.kill()
        process.communicate()
        assert not waiting  # no worker outlives the process that started it
        assert not (to / "dataset.json").exists()
        with pytest.raises(UserError, match=r"holds no dataset\.json; make it with"):
            load_dataset(to)
        for path in to.glob("*/*.npy"):  # what is there is whole
            assert len(np.load(path, allow_pickle=False)) == len(index_shard(path.with_suffix(".tar"))) == 100
        for path, time_written in kept.items():
            assert path.stat().st_mtime_ns == time_written  # and is not written a second time
        kept = {path: path.stat().st_mtime_ns for path in to.glob("*/*.npy") if noted(to, path)}
    assert len(kept) >= 20
    process = start(*arguments, stdout=subprocess.PIPE)
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    assert "train 2,500 in 25 shards, test 500 in 5 shards; left out: 0" in output
    assert digests(to) == digests(tmp_path / "whole")
    assert load_dataset(to).fingerprint == whole.fingerprint
    assert all(path.stat().st_mtime_ns == time_written for path, time_written in kept.items())


def still_there(workers: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run on; the dead that nobody has buried (a container without init) do not count."""
    _, waiting = psutil.wait_procs(workers, timeout=20)
    return [worker for worker in waiting if worker.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_ctrl_c_stops_at_once_and_the_same_command_continues(tmp_path):
    raw = write_folder(tmp_path, per_batch=4000)
    to = tmp_path / "to"
    arguments = ("source=cifar10", f"from={raw}", f"to={to}", "shard=1000", "workers=2")
    process = start(*arguments, start_new_session=True)
    while process.poll() is None and not list(to.glob("*/*.npy")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGSTOP)  # else it is done before a busy machine has found its workers
    workers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it, to all of them
    os.killpg(process.pid, signal.SIGCONT)
    interrupted = time.monotonic()
    _, errors = process.communicate(timeout=300)
    assert time.monotonic() - interrupted < 15
    assert (process.returncode, errors) == (130, "interrupted; the same command continues\n")
    assert not still_there(workers)
    assert not list(to.rglob("*.part"))
    assert len(list(to.glob("*/*.npy"))) < 24  # of as many shards
    dataset = make("cifar10", to, raw, images_per_shard=1000, workers=1, progress=False)
    assert dataset.splits["train"].images == 20_000


def noted(to: Path, index: Path) -> bool:
    """Whether the shard of this index was noted as finished before the kill."""
    return (to / ".making" / f"{index.parent.name}-{index.stem}.tar.json").exists()


@pytest.mark.slow
def test_sigterm_ends_the_workers_and_leaves_one_line(tmp_path):
    """A batch system ends the first process alone; its pool is closed, so that no semaphore leaks."""
    raw, to = write_folder(tmp_path, per_batch=2000), tmp_path / "to"
    arguments = ("source=cifar10", f"from={raw}", f"to={to}", "shard=200", "workers=2")
    process = start(*arguments)
    while process.poll() is None and not list(to.glob("*/*.npy")):
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (143, "ended by SIGTERM; the same command continues\n")
    assert not still_there(workers)
    assert (to / ".making" / "plan.json").exists()


@pytest.mark.slow
def test_two_that_make_it_at_once_take_turns(tmp_path):
    raw = write_folder(tmp_path, per_batch=500)
    arguments = ("source=cifar10", f"from={raw}", f"to={tmp_path / 'to'}", "shard=200", "workers=1")
    processes = [start(*arguments, stdout=subprocess.PIPE) for _ in range(3)]
    results = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], results
    assert all("train 2,500 in 13 shards" in output for output, _ in results), results
    assert any("waiting for another process" in errors for _, errors in results)
    whole = make("cifar10", tmp_path / "whole", raw, images_per_shard=200, workers=1, progress=False)
    assert digests(tmp_path / "to") == digests(tmp_path / "whole")
    assert load_dataset(tmp_path / "to").fingerprint == whole.fingerprint


@pytest.mark.slow
def test_a_killed_worker_is_one_line(tmp_path):
    raw = write_folder(tmp_path, per_batch=2000)
    to = tmp_path / "to"
    process = start("source=cifar10", f"from={raw}", f"to={to}", "shard=1000", "workers=2")
    while process.poll() is None and not list(to.glob("*/*.npy")):
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)  # and its workers soon have nothing to do
    workers = psutil.Process(process.pid).children()
    next(worker for worker in workers if "spawn_main" in " ".join(worker.cmdline())).kill()
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert errors == "error: a worker process was killed (out of memory?); try again with workers=1\n"
    assert not still_there(workers)
