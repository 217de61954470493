"""What is looked at before a log line and before a save, and that no number that is not finite is missed."""

import pytest
import torch

from trainer.engines.engine import all_finite

CPU = torch.device("cpu")
BAD = [float("nan"), float("inf"), -float("inf")]
LARGEST = torch.finfo(torch.float32).max  # the squares of such numbers overflow


def tensors():
    """Of each kind that a state has: counts, a step, a queue's transposed shard, none at all, other types."""
    return {
        "scalar": torch.tensor(3.0),
        "matrix": torch.full((4, 5), LARGEST),
        "transposed": torch.randn(6, 3, 2).transpose(0, 1),
        "strided": torch.randn(8, 8)[::2, ::3],
        "bf16": torch.randn(7).bfloat16(),
        "double": torch.full((3,), 1e300, dtype=torch.float64),
        "count": torch.tensor([2**62]),
        "empty": torch.empty(0, 4),
        "trained": torch.randn(3).requires_grad_(),
    }


def test_the_largest_numbers_are_finite_and_so_is_nothing():
    finite = all_finite(tensors().values(), CPU)
    assert finite.item() is True
    assert finite.shape == ()
    assert not finite.requires_grad
    assert all_finite([], CPU).item() is True


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", [name for name in tensors() if name not in ("count", "empty")])
def test_one_number_that_is_not_finite_is_seen_wherever_it_is(name, bad):
    values = tensors()
    with torch.no_grad():
        values[name][(-1,) * values[name].dim()] = bad
    assert all_finite(values.values(), CPU).item() is False


def test_log_lines_look_at_weights_and_saves_at_all_that_is_saved(train):
    trainer = train("quickstart", "batch=64", "groups.norm=16", "optimizer.lr=1e-3")
    trainer.step()
    weight = trainer.objective.encoder.y.weight
    buffer = next(b for b in trainer.objective.buffers() if b.is_floating_point())
    for tensor, seen_in_a_log_line in (
        (weight, True),
        (buffer, False),
        (trainer.optimizer.state[weight]["exp_avg"], False),
    ):
        assert trainer.all_finite()
        with torch.no_grad():
            kept = tensor.clone()
            tensor.view(-1)[3] = torch.nan
            assert trainer.all_finite(weights_only=True) is not seen_in_a_log_line
            assert not trainer.all_finite()
            tensor.copy_(kept)


def test_the_keys_of_a_queue_are_looked_at_before_a_save(train):
    views = "data.views=[{flip: 0.5}, {flip: 0.5}]"
    contrast = "objective={kind: moco, shuffle: 2, queue: {keys: 128}, head: {units: 16, width: 8}}"
    trainer = train("quickstart", "batch=64", "groups.norm=16", views, contrast)
    trainer.step()
    shards = [m for m in trainer.objective.modules() if hasattr(m, "shard")]
    assert trainer.all_finite()
    shards[0].shard[-1, -1, -1] = torch.inf
    assert trainer.all_finite(weights_only=True)
    assert not trainer.all_finite()
