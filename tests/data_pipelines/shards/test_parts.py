"""Parts of a data set, made at once and by whoever comes, are the data set that one process makes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.common.errors import UserError
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.shards.__main__ import main
from data_pipelines.shards.make import make
from data_pipelines.shards.parts import Part, make_part
from data_pipelines.shards.request import Request
from data_pipelines.shards.turns import beside_others
from tests.helpers.file_digests import digests
from tests.helpers.synthetic_cifar import write_folder

ROOT = Path(__file__).resolve().parents[3]
PER_SHARD = 20  # of 150 images for training and 30 for testing: 8 shards and 2


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory) -> Path:
    to = tmp_path_factory.mktemp("whole")
    make("cifar10", to, raw, images_per_shard=PER_SHARD, workers=1, progress=False)
    return to


def part(number: int, count: int, to: Path, raw: Path):
    request = Request("cifar10", to, raw, images_per_shard=PER_SHARD, workers=1, progress=False)
    return make_part(Part(number, count), request)


@pytest.mark.parametrize("count", [1, 3, 12])  # twelve: two have no shard
def test_the_last_part_makes_the_data_set_of_all(raw, whole, tmp_path, count):
    to = tmp_path / "to"
    order = [*range(2, count + 1), 1]
    for number in order[:-1]:
        assert part(number, count, to, raw) is None
        assert not (to / "dataset.json").exists()
    dataset = part(1, count, to, raw)
    assert dataset.fingerprint == load_dataset(whole).fingerprint
    assert digests(to) == digests(whole)
    assert not (to / ".making").exists()
    assert part(1, count, to, raw).fingerprint == dataset.fingerprint  # given again


def test_a_part_writes_its_shards_alone(raw, tmp_path):
    part(2, 3, tmp_path / "to", raw)
    shards = sorted(str(path.relative_to(tmp_path / "to")) for path in (tmp_path / "to").glob("*/*.tar"))
    assert shards == ["train/000001.tar", "train/000004.tar", "train/000007.tar"]


def test_parts_of_another_count_and_the_whole_command_complete_it(raw, whole, tmp_path):
    to = tmp_path / "to"
    part(1, 2, to, raw)
    written = {path: path.stat().st_mtime_ns for path in to.glob("*/*.tar")}
    assert len(written) == 5
    part(1, 3, to, raw)
    make("cifar10", to, raw, images_per_shard=PER_SHARD, workers=1, progress=False)
    assert digests(to) == digests(whole)
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())


def test_the_last_leaves_the_end_to_whoever_is_still_at_work(raw, whole, tmp_path):
    to = tmp_path / "to"
    with beside_others(to):  # as a part that is slow to end
        assert part(1, 1, to, raw) is None
        assert not (to / "dataset.json").exists()
    assert part(1, 1, to, raw) is not None
    assert digests(to) == digests(whole)


def test_a_shard_that_was_damaged_meanwhile_is_written_again(raw, whole, tmp_path):
    to = tmp_path / "to"
    part(1, 2, to, raw)
    (to / "train" / "000002.tar").write_bytes(b"not what was written")
    assert part(2, 2, to, raw) is not None
    assert digests(to) == digests(whole)


def test_other_options_are_refused_and_a_refused_part_leaves_nothing(raw, tmp_path, capsys):
    to = tmp_path / "to"
    assert main(["source=folder", f"from={tmp_path / 'none'}", f"to={to}", "part=1/2"]) == 2
    assert not to.exists()
    part(1, 2, to, raw)
    with pytest.raises(UserError, match="was begun with source=cifar10 shard=20; choose another folder"):
        make_part(Part(2, 2), Request("cifar10", to, raw, images_per_shard=30, progress=False))
    capsys.readouterr()
    for wrong in ("0/2", "3/2", "2", "a/b", "1/2/3"):
        assert main(["source=cifar10", f"from={raw}", f"to={to}", f"part={wrong}"]) == 2
        assert f"error: part={wrong}: expected I/N, the I-th of N parts" in capsys.readouterr().err


def test_the_command_says_what_is_missing(raw, tmp_path, capsys):
    words = ["source=cifar10", f"from={raw}", f"to={tmp_path / 'to'}", "shard=60", "workers=1"]
    assert main([*words, "part=2/2"]) == 0
    assert "part 2 of 2 is made; shards of others are missing" in capsys.readouterr().out
    assert main([*words, "part=1/2"]) == 0
    assert "train 150 in 3 shards, test 30 in 1 shards; left out: 0" in capsys.readouterr().out


@pytest.mark.slow
def test_parts_at_the_same_time_one_of_them_killed_and_given_again(tmp_path):
    raw, to = write_folder(tmp_path, per_batch=1000), tmp_path / "to"
    words = ["source=cifar10", f"from={raw}", f"to={to}", "shard=100", "workers=1"]

    def start(number: int) -> subprocess.Popen:
        command = [sys.executable, "-m", "data_pipelines.shards", *words, f"part={number}/3"]
        return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def shards_of_second() -> list[int]:
        numbers = [int(path.stem) for path in to.glob("train/*.npy")]
        return [number for number in numbers if number % 3 == 1]

    processes = [start(number) for number in (1, 2, 3)]
    while processes[1].poll() is None and len(shards_of_second()) < 3:
        time.sleep(0.002)
    os.kill(processes[1].pid, signal.SIGKILL)
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, -signal.SIGKILL, 0], outputs
    assert not (to / "dataset.json").exists()
    noted = [json.loads(path.read_bytes()) for path in (to / ".making").glob("*.tar.json")]
    assert len(noted) < 60
    again = start(2)
    output, errors = again.communicate(timeout=300)
    assert (again.returncode, errors) == (0, "")
    assert "train 5,000 in 50 shards, test 1,000 in 10 shards; left out: 0" in output
    alone = make("cifar10", tmp_path / "whole", raw, images_per_shard=100, workers=1, progress=False)
    assert load_dataset(to).fingerprint == alone.fingerprint
    assert digests(to) == digests(tmp_path / "whole")
