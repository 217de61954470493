"""A restore on 4 gloo ranks reads each byte of a checkpoint once, and gives every rank every bit."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.checkpoint_states import same, state
from trainer.checkpoints.format import folder_name, part_name, write_manifest, write_part
from trainer.checkpoints.save import snapshot
from trainer.distributed.rows import row_range

WORLD = 4
WORKER = Path(__file__).parent / "worker_restore.py"


def saved(folder, values, world):
    path = folder / folder_name(100)
    path.mkdir()
    parts = [snapshot(values, rank, world).parts for rank in range(world)]
    written = [write_part(path / part_name(rank, world), part) for rank, part in enumerate(parts)]
    write_manifest(path, 100, written, {})
    return path


def values():
    """Every dtype and shape that there is, layers of many sizes, a tensor of which each rank has its rows."""
    draws = torch.Generator().manual_seed(0)
    layers = {f"model/layer.{n}": torch.randn(n * 37 + 5, 11, generator=draws) for n in range(20)}
    keys = torch.randn(30, 4, generator=draws)
    return {f"model/{name}": tensor for name, tensor in state().items()} | layers | {"shard/queue/keys": keys}


@pytest.fixture(scope="module")
def restored(tmp_path_factory, forker):
    """Folders of checkpoints of one part, of three, and of one that is cut short, restored on 4 ranks."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("one", "three", "cut")}
    paths = [saved(folder, values(), 3 if name == "three" else 1) for name, folder in folders.items()]
    with open(paths[-1] / part_name(0, 1), "rb+") as file:
        file.truncate(os.stat(file.fileno()).st_size - 4)  # of the tensor that lies last
    ranks = forker.run(WORKER, tmp_path_factory.mktemp("logs") / "logs", WORLD, *map(str, paths))
    assert ranks.wait(120) == [0] * WORLD, ranks.text()
    return folders


def results(folder):
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["one", "three"])
def test_each_byte_is_read_once(restored, parts):
    whole, folder = values(), restored[parts]
    reads = [result["reads"] for result in results(folder)]
    read = Counter(
        (part, byte) for rank in reads for part, start, count in rank for byte in range(start, start + count)
    )
    assert set(read.values()) == {1}
    assert len(read) == sum(tensor.numel() * tensor.element_size() for tensor in whole.values())
    shares = [sum(count for *_, count in rank) for rank in reads]
    assert max(shares) - min(shares) < 0.1 * sum(shares), "about equally many by each rank"
    for rank in range(WORLD):
        start, stop = row_range(30, rank, WORLD)
        expected = whole | {"shard/queue/keys": whole["shard/queue/keys"][start:stop]}
        assert same(load_file(folder / f"loaded-{rank}.safetensors"), expected)


@pytest.mark.slow
def test_damage_that_one_rank_meets_is_said_by_all(restored):
    errors = {result["error"] for result in results(restored["cut"])}
    assert len(errors) == 1
    assert "ends too early" in errors.pop()
