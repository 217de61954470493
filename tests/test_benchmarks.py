"""The arithmetic of the benchmarks on a GPU, their file of rows, and the plain steps beside ours."""

import json

import pytest
import torch

from benchmarks.gpu_rows import KERNELS, OPERATIONS, Rows, covered, idle, of_trace, speed, table
from benchmarks.growth import exponent
from benchmarks.plain_steps import (
    BatchNorm,
    ClonedQueue,
    infonce_of_all_scores,
    jsd_of_all_scores,
    plain_norms,
)
from trainer.networks.batch_norm import GroupBatchNorm
from trainer.objectives import bounds
from trainer.objectives.momentum_queue import MomentumQueue

SETTING = {"name": "card", "sizes": "tiny", "torch": "2", "commit": "a"}


def test_busy_time_counts_what_overlaps_once():
    assert covered([]) == 0
    assert covered([(0, 2), (1, 3), (5, 6), (5.5, 5.75)]) == 4
    assert covered([(5, 6), (0, 10)]) == 10


def test_a_trace_counts_the_kernels_of_all_streams_and_nothing_else():
    events = [
        {"cat": "kernel", "ts": 10, "dur": 5, "tid": 7},
        {"cat": "kernel", "ts": 12, "dur": 5, "tid": 8},
        {"cat": "gpu_memcpy", "ts": 30, "dur": 1},
        {"cat": "gpu_user_annotation", "ts": 0, "dur": 100},
        {"cat": "cpu_op", "ts": 0, "dur": 50},
        {"ph": "M", "name": "process_name"},
    ]
    assert of_trace({"traceEvents": events}, KERNELS) == (3, pytest.approx(8e-6))
    assert of_trace({"traceEvents": events}, OPERATIONS) == (1, pytest.approx(50e-6))


def test_a_trace_of_torch_has_that_format(tmp_path):
    with torch.profiler.profile() as profile:
        torch.ones(3) + torch.ones(3)
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    launches, busy = of_trace(json.loads((tmp_path / "trace.json").read_bytes()), OPERATIONS)
    assert launches >= 3
    assert busy > 0


def test_speeds_and_idle_share():
    assert speed(256, 20, 1e12, 4e13) == {"model": 5120, "tflops": 20, "share": 0.5}
    assert speed(256, 20, 1e12, None)["share"] is None
    assert idle(busy=0.6, steps=3, step_seconds=0.25) == pytest.approx(0.2)
    assert idle(busy=3, steps=3, step_seconds=0.25) == 0


def test_a_file_of_rows_goes_on_where_it_was_cut(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = Rows(path, SETTING)
    rows.add("attention", {"passed": True, "said": "well"})
    rows.add("steps", {"failed": "cut off after 40 s"})
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"task": "product", "sett')  # the machine went away
    again = Rows(path, SETTING)
    assert again.finished("attention")
    assert not again.finished("steps")
    assert not again.finished("product")
    again.add("steps", {"passed": False, "said": "apart"})
    assert Rows(path, SETTING).finished("steps")
    assert not Rows(path, SETTING | {"commit": "b"}).finished("steps")


def test_a_table_has_each_row_once_and_says_what_is_missing():
    of = {"recipe": "dim_local", "px": 32, "batch": 512, "precision": "bf16"}
    plain = {"task": "plain", "step": "plain PyTorch"} | of | speed(512, 10, 1e12, None)
    rows = [
        {"task": "attention", "passed": False, "said": "off"},
        {"task": "product", "side": 8, "bf16_rate": 2e14},
        {"task": "ours", "step": "eager", "end_to_end": 5.0} | of | speed(512, 10, 1e12, 2e14),
        plain,
        {"task": "resume", "failed": "cut off"},
    ]
    lines = table(rows).splitlines()
    assert "| attention | **FAILED** | off |" in lines
    assert "bf16, 8 x 8: 200.00 TFLOP/s" in lines
    assert "| dim_local | eager | 32 | 512 | bf16 | 5 | 80,000 | 5,120 |  |  |  |  | 10 | 5.0% |" in lines
    assert "| dim_local | plain PyTorch | 32 | 512 | bf16 |  |  | 5,120 |  |  |  |  | 10 |  |" in lines
    assert "resume: not measured, cut off" in lines


@pytest.mark.parametrize(("bound", "plain"), [("infonce", infonce_of_all_scores), ("jsd", jsd_of_all_scores)])
def test_a_plain_loss_with_all_scores_is_ours(bound, plain):
    draws = torch.Generator().manual_seed(0)
    local, y = (torch.randn(size, generator=draws, dtype=torch.float64) for size in ((6, 5, 8), (6, 8)))
    values, gradients = [], []
    for loss in (plain, lambda local, y: ours(bound, local, y)):
        inputs = [part.clone().requires_grad_() for part in (local, y)]
        values.append(loss(*inputs))
        gradients.append(torch.autograd.grad(values[-1], inputs))
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def ours(bound, local, y):
    return bounds.LOSSES[bound](bounds.reduce_scores(torch.einsum("iu,jlu->ijl", y, local)))


def test_a_cloned_queue_gives_our_loss_and_gradient_and_takes_keys_in_turn():
    queue = MomentumQueue(24, 8, 8)
    plain = ClonedQueue(24, 8, 0.2, torch.device("cpu"))
    plain.queue = queue.sharded_state_dict()["keys"].rows.transpose(0, 1).flatten(0, 1).T.clone()
    draws = torch.Generator().manual_seed(0)
    for step in range(5):  # the queue wraps
        query, key = torch.nn.functional.normalize(torch.randn(2, 8, 8, generator=draws), dim=2)
        query.requires_grad_()
        loss = bounds.softplus(queue.log_sum_exp(query, 0.2, step) - (query * key).sum(1) / 0.2).mean()
        expected = torch.autograd.grad(loss, query)[0]
        other = plain(query, key)
        gradient = torch.autograd.grad(other, query)[0]
        torch.testing.assert_close(other, loss)
        along = (expected * query.detach()).sum(1, keepdim=True) * query.detach()
        torch.testing.assert_close(gradient, expected - along)  # the plain one normalises the query again
        queue.enqueue(key, step)


def test_plain_norms_replaces_each_of_ours():
    module = plain_norms(torch.nn.Sequential(GroupBatchNorm(3, 2), torch.nn.Sequential(GroupBatchNorm(3, 2))))
    assert [type(part) for part in module.modules()].count(BatchNorm) == 2
    module(torch.randn(4, 3, 5, 5)).sum().backward()
    module(torch.randn(4, 3))


def test_an_exponent_is_the_slope_of_the_logarithms():
    sizes = [10, 100, 1000]
    assert exponent(sizes, [3 * size**2 for size in sizes]) == pytest.approx(2)
    assert exponent(sizes, [7.0] * 3) == pytest.approx(0)
    with pytest.raises(ValueError, match="no exponent"):
        exponent([10], [1])
