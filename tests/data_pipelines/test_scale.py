"""A hundred million images: what opening and planning them takes, and that it is planned right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PLANNED = """
import json, sys
import numpy as np

sys.path.insert(0, "benchmarks")
from planning import highest_memory
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.plan import PIECE, Plan
from data_pipelines.reader import Reader

before = highest_memory()
reader = Reader(load_dataset(sys.argv[1]), "train")
plan = Plan(0, reader.shards, window=16)
assert reader.images == plan.images == 100_000_000
per_shard = reader.shards[0]
for start in (0, 10**8 - 3000, 7 * 10**8 + 12_345_678):
    ids = plan.ids(start, 6000)
    rows = reader.entries(ids)
    assert np.array_equal(rows["offset"], ids % per_shard)  # the right rows of the right shard
for epoch in (0, 3):  # a window is whole pieces, in another order, and the next one has none of its samples
    pieces = np.diff(plan.first)
    assert pieces.max() <= PIECE
    order, ends = plan._epoch(epoch)
    first, second = (plan.ids(epoch * 10**8 + a, b - a) for a, b in ((0, ends[0]), (ends[0], ends[1])))
    expected = [np.arange(plan.first[p], plan.first[p + 1]) for p in np.sort(order[:16])]
    assert np.array_equal(np.sort(first), np.concatenate(expected))
    assert not np.array_equal(first, np.sort(first))
    assert len(np.intersect1d(first, second)) == 0
    assert np.array_equal(np.sort(order), np.arange(len(pieces))) and ends[-1] == 10**8
print(json.dumps(highest_memory() - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("shards", "images"), [(10_000, 10_000), (100, 1_000_000)])
def test_a_hundred_million_images_take_little_memory(tmp_path, monkeypatch, shards, images):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from drawn_pictures import links

    links(tmp_path / "data", shards, images)
    command = [sys.executable, "-c", PLANNED, tmp_path / "data"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) < 200
