"""The momentum queue on one process, against full logits; tests/ranks has it on several."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.random_keys import TAU, filled_queue, full_logits, units
from trainer.objectives import queue_attention
from trainer.objectives.bounds import softplus
from trainer.objectives.momentum_queue import MomentumQueue
from trainer.objectives.queue_attention import PIECE, attend


@pytest.mark.parametrize("way", ["fused", "chunked"])
@pytest.mark.parametrize(("rows", "keys", "width"), [(1, 1, 8), (7, 100, 3), (50, 4096, 128), (3, 1025, 300)])
def test_attention_is_exact(way, rows, keys, width, monkeypatch):
    monkeypatch.setattr(queue_attention, "PIECE", 10_000)  # several pieces
    queries, shard = units(rows, width), units(keys, width, seed=1)
    log, gradient = full_logits(queries, shard)
    mean, log_sum_exp = attend(queries, shard, TAU, way)
    assert (log_sum_exp - log).abs().max() < 1e-12
    assert (mean / TAU - gradient).abs().max() < 1e-12
    mean, log_sum_exp = attend(queries.float(), shard.float(), TAU, way)
    assert mean.dtype == log_sum_exp.dtype == torch.float32
    assert (log_sum_exp - log).abs().max() < 1e-5
    assert (mean / TAU - gradient).norm() < 1e-5 * gradient.norm()


def test_few_queries_are_compared_with_many_keys_in_parts():
    queries, shard = units(5, 16), units(6 * 1024, 16, seed=1)
    shapes = []
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket is kernel:
                shapes.append(tuple(args[1].shape))
            return function(*args, **(kwargs or {}))

    log, gradient = full_logits(queries, shard)
    with Shapes():
        mean, log_sum_exp = attend(queries, shard, TAU, "fused")
    assert shapes == [(4, 1, 1536, 16)]
    assert (log_sum_exp - log).abs().max() < 1e-12
    assert (mean / TAU - gradient).abs().max() < 1e-12


@pytest.mark.parametrize("shift", [60.0, -60.0])
def test_scores_far_from_zero_do_not_overflow(shift):
    """Scores of 60 / 0.07 overflow even float64's exponential."""
    shard = units(500, 4, seed=1) + shift
    queries = torch.ones(3, 4, dtype=torch.float64) + units(3, 4)
    log, gradient = full_logits(queries, shard)
    for way in ("fused", "chunked"):
        mean, log_sum_exp = attend(queries, shard, TAU, way)
        assert ((log_sum_exp - log) / log).abs().max() < 1e-14
        assert torch.allclose(mean / TAU, gradient, rtol=1e-9)


def test_gradient_scales_with_what_arrives():
    queue = filled_queue(units(64, 8, seed=1), 16, "float64")
    queries = units(10, 8).requires_grad_()
    weights = torch.linspace(-1, 2, 10, dtype=torch.float64)
    (queue.log_sum_exp(queries, TAU, 4) * weights).sum().backward()
    assert torch.allclose(queries.grad, full_logits(queries, units(64, 8, seed=1))[1] * weights[:, None])


def test_the_queue_holds_the_last_keys_in_order():
    """Empty, partly filled, full, wrapped: after every step against the last K keys of the run."""
    stream, batch, slots = units(11 * 6, 8, seed=1), 6, 4
    queue = MomentumQueue(batch * slots, 8, batch, "empty", "float64")
    queries = units(5, 8)
    for step in range(11):
        assert queue.keys_at(step) == min(step, slots) * batch
        last = stream[max(0, step - slots) * batch : step * batch]
        log, _ = full_logits(queries, last)
        log_sum_exp = queue.log_sum_exp(queries, TAU, step)
        assert torch.equal(log_sum_exp, log) if step == 0 else (log_sum_exp - log).abs().max() < 1e-12
        own = stream[step * batch : (step + 1) * batch]
        queue.enqueue(own, step)
        slot = queue.sharded_state_dict()["keys"].rows[:, step % slots]
        assert torch.equal(slot, own)


def test_one_batch_is_a_queue():
    queue = MomentumQueue(6, 8, 6, "empty", "float64")
    stream, queries = units(3 * 6, 8, seed=1), units(5, 8)
    for step, keys in enumerate(stream.split(6)):
        queue.enqueue(keys, step)
        log, _ = full_logits(queries, keys)
        assert (queue.log_sum_exp(queries, TAU, step + 1) - log).abs().max() < 1e-12


@pytest.mark.parametrize("plus", [F.softplus, softplus])
def test_an_empty_queue_asks_for_nothing(plus):
    queue = MomentumQueue(12, 8, 6, "empty")
    queries = units(4, 8, dtype=torch.float32).requires_grad_()
    rest = queue.log_sum_exp(queries, TAU, 0)
    assert rest.tolist() == [-math.inf] * 4
    loss = plus(rest - (queries * units(4, 8, seed=1).float()).sum(1) / TAU).mean()
    loss.backward()
    assert loss == 0
    assert torch.equal(queries.grad, torch.zeros(4, 8))


def test_bf16_keys_cost_little():
    """Clusters as of a trained encoder: scores from -1/tau to 1/tau."""
    centres = units(20, 128, seed=1)
    queries = F.normalize(centres[torch.arange(64) % 20] + 0.5 * units(64, 128, seed=2), dim=1)
    keys = F.normalize(centres[torch.arange(4096) % 20] + 0.5 * units(4096, 128, seed=3), dim=1)
    positives = (queries * F.normalize(queries + 0.3 * units(64, 128, seed=4), dim=1)).sum(1) / TAU

    def loss_and_gradient(storage: str) -> tuple[float, torch.Tensor]:
        queue = filled_queue(keys, 256, storage)
        q = queries.to(torch.float64 if storage == "float64" else torch.float32, copy=True).requires_grad_()
        loss = softplus(queue.log_sum_exp(q, TAU, 16) - positives).mean()
        loss.backward()
        return loss.item(), q.grad.double().flatten()

    exact, gradient = loss_and_gradient("float64")
    loss, rounded = loss_and_gradient("bf16")
    assert exact > 0.1
    assert 0 < abs(loss - exact) < 1e-2
    assert F.cosine_similarity(rounded, gradient, dim=0) > 0.9999


def test_autocast_changes_nothing():
    queue = filled_queue(units(64, 32, seed=1), 16, "float32")
    queries = units(10, 32, dtype=torch.float32)
    plain = queue.log_sum_exp(queries, TAU, 4)
    for way in ("fused", "chunked"):
        with torch.autocast("cpu", torch.bfloat16), pytest.MonkeyPatch.context() as patch:
            patch.setattr(queue_attention, "path", lambda *_, way=way: way)
            log_sum_exp = queue.log_sum_exp(queries, TAU, 4)
        assert log_sum_exp.dtype == torch.float32
        assert (log_sum_exp - plain).abs().max() < 1e-5
    assert queue.log_sum_exp(queries.bfloat16(), TAU, 4).dtype == torch.float32


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("micros", [2, 4])
def test_accumulation_changes_nothing(symmetric, micros):
    """Every micro-batch sees the same queue; the keys of all enter together."""
    images, steps, each = 8, 5, 1 + symmetric

    def run(micros: int) -> list[torch.Tensor]:
        queue, tensors = MomentumQueue(3 * images * each, 8, images * each, "random", "float64"), []
        for step in range(steps):
            views = units(2, images, 8, seed=step).requires_grad_()
            pending, loss = [], 0
            for micro in views.split(images // micros, dim=1):
                queries, keys = micro.flatten(0, 1), micro.detach().flip(0).flatten(0, 1)
                if not symmetric:
                    queries, keys = micro[0], micro[1].detach()
                rest = queue.log_sum_exp(queries, TAU, step)
                loss = loss + softplus(rest - (queries * keys).sum(1) / TAU).mean() / micros
                pending.append(micro.detach().transpose(0, 1).flatten(0, 1) if symmetric else keys)
            loss.backward()
            queue.enqueue(torch.cat(pending), step)
            tensors += [loss.detach(), views.grad]
        return [*tensors, queue.shard]

    for a, b in zip(run(1), run(micros), strict=True):
        assert (a - b).abs().max() < 1e-9


def test_a_positive_is_never_among_the_negatives():
    """A step's own keys enter after it: where key and query are one, the largest score stays another's."""
    queue, keys = MomentumQueue(12, 8, 6, "empty", "float64"), units(18, 8)
    for step, own in enumerate(keys.split(6)):
        if step:
            others = keys[max(0, step - 2) * 6 : step * 6]
            assert (queue.log_sum_exp(own, 1e-3, step) * 1e-3).max() < (own @ others.T).max() + 0.01 < 0.99
        queue.enqueue(own, step)


def test_no_matrix_of_queries_by_keys_and_no_wait_for_the_device():
    largest, waits = 0, 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest, waits
            waits += function.overloadpacket is torch.ops.aten._local_scalar_dense
            out = function(*args, **(kwargs or {}))
            for made in out if isinstance(out, tuple) else (out,):
                if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() != shard:
                    largest = max(largest, made.numel())
            return out

    for storage, way, most in (
        ("float32", "fused", 2**12),
        ("bf16", "fused", PIECE),
        ("float32", "chunked", PIECE),
    ):
        queue = MomentumQueue(2**18, 16, 2**14, storage=storage)
        queries = units(128, 16, dtype=torch.float32).requires_grad_()
        keys = units(2**14, 16, dtype=torch.float32)
        queue.enqueue(keys, 0)
        shard, largest = queue.shard.data_ptr(), 0
        with pytest.MonkeyPatch.context() as patch, Watch():
            patch.setattr(queue_attention, "path", lambda *_, way=way: way)
            queue.log_sum_exp(queries, TAU, 1).sum().backward()
            queue.enqueue(keys, 1)
        assert 0 < largest <= most
    assert waits == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("storage", "width"), [("float32", 128), ("float32", 2048), ("float32", 12), ("bf16", 128)]
)
@pytest.mark.parametrize("rows", [5, 256])
def test_on_a_gpu(storage, width, rows):
    keys, queries = units(2**14, width, seed=1), units(rows, width)
    log, gradient = full_logits(queries, keys)
    queue = filled_queue(keys.cuda(), 1024, storage)
    on_gpu = queries.float().cuda().requires_grad_()
    log_sum_exp = queue.log_sum_exp(on_gpu, TAU, 16)
    log_sum_exp.sum().backward()
    assert (log_sum_exp.cpu().mean() - log.mean()).abs() < (1e-2 if storage == "bf16" else 1e-4)
    assert F.cosine_similarity(on_gpu.grad.cpu().double().flatten(), gradient.flatten(), dim=0) > 0.9999
