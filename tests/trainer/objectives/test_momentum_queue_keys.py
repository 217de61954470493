"""The keys of a momentum queue: the first ones, what engines and checkpoints see of them, what is refused."""

import copy
import math

import pytest
import torch

from tests.helpers.random_keys import TAU, filled_queue, units
from trainer.checkpoints.load import load_rows
from trainer.checkpoints.save import snapshot, write
from trainer.distributed.rows import row_range
from trainer.objectives.momentum_queue import MomentumQueue, unit_keys


def test_first_keys_are_the_same_however_they_are_shared_out():
    whole = unit_keys(3, range(5), 0, 24, 20)
    for world in (2, 3, 4):
        parts = [unit_keys(3, range(5), *_share(24, rank, world), 20) for rank in range(world)]
        assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(unit_keys(3, range(2, 4), 0, 24, 20), whole[2:4])
    queue = MomentumQueue(120, 20, 24, seed=3)
    queue.log_sum_exp(units(2, 20), TAU, 0)
    assert torch.equal(queue.shard, whole)


def _share(count: int, rank: int, world: int) -> tuple[int, int]:
    first, after = row_range(count, rank, world)
    return first, after - first


def test_first_keys_are_uniform_on_the_sphere():
    keys = unit_keys(0, range(40), 0, 512, 12).flatten(0, 1).double()
    assert torch.allclose(keys.norm(dim=1), torch.ones(len(keys), dtype=torch.float64), atol=1e-6)
    assert keys.mean(0).abs().max() < 5 / math.sqrt(12 * len(keys))
    assert (keys.T @ keys / len(keys) * 12 - torch.eye(12)).abs().max() < 0.05
    assert (keys**4).mean(0).sub(3 / (12 * 14)).abs().max() < 0.001  # E x^4 = 3 / (d (d + 2))
    assert len(torch.unique(keys, dim=0)) == len(keys)
    assert not torch.equal(unit_keys(1, range(1), 0, 4, 12), unit_keys(0, range(1), 0, 4, 12))


def test_nothing_is_held_before_it_is_used_nor_seen_by_engines():
    with torch.device("meta"):
        queue = MomentumQueue(2**40, 128, 256)
    assert queue.shard is None
    queue = filled_queue(units(12, 8), 6, "float64")
    assert not queue.state_dict()
    assert not [*queue.parameters(), *queue.buffers()]
    before = queue.shard.clone()
    queue.to(torch.float16)
    assert queue.shard.dtype == torch.float64
    twin = copy.deepcopy(queue)
    twin.enqueue(units(6, 8, seed=5), 2)
    assert torch.equal(queue.shard, before)
    assert not torch.equal(twin.shard, before)


@pytest.mark.parametrize("storage", ["float32", "float64", "bf16"])
def test_rows_come_back_bit_for_bit_on_any_number_of_ranks(storage, tmp_path):
    queue = filled_queue(units(24, 8), 8, storage)
    rows = queue.sharded_state_dict()["keys"]
    assert (rows.shape, rows.offset) == ((8, 3, 8), 0)
    saved = snapshot({"keys": rows.rows}, 0, 1)
    written = write(saved, tmp_path, 24, {}, "attempt", keep=1)
    parts = [load_rows(written, rank, 4)["keys"] for rank in range(4)]
    assert torch.equal(torch.cat(parts), rows.rows)
    assert torch.equal(parts[1], rows.rows[2:4])
    other = MomentumQueue(24, 8, 8, "empty", storage)
    other.load_sharded_state_dict(load_rows(written, 0, 1))
    assert torch.equal(other.shard, queue.shard)
    queries = units(3, 8, dtype=torch.float32)
    assert torch.equal(other.log_sum_exp(queries, TAU, 3), queue.log_sum_exp(queries, TAU, 3))
    other.enqueue(units(8, 8, seed=9), 3)
    assert torch.equal(queue.sharded_state_dict()["keys"].rows, rows.rows)  # no memory is shared
    with pytest.raises(ValueError, match=r"\[8, 3, 8\], not \[2, 3, 8\]"):
        other.load_sharded_state_dict({"keys": parts[0]})


@pytest.mark.parametrize(
    ("keys", "batch", "advice"), [(1000, 256, "768 or 1024"), (100, 256, "use 256,"), (0, 8, "use 8,")]
)
def test_a_queue_holds_whole_steps(keys, batch, advice):
    with pytest.raises(ValueError, match=rf"^keys={keys} .* {batch} keys .*{advice}"):
        MomentumQueue(keys, 8, batch)


def test_keys_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\[6, 8\] a rank, not \[1, 8\]"):
        MomentumQueue(12, 8, 6).enqueue(units(1, 8), 0)
