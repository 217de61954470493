"""Which attention the queue takes: a fused kernel that is wrong on a device is replaced by plain products.

On CUDA the kernel is compared before it is used; here the CPU takes its part.
"""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.random_keys import TAU, filled_queue, full_logits, units
from trainer.objectives import queue_attention
from trainer.objectives.queue_attention import attend, chunk, fault, fault_of_fused, fused, path
from trainer.recipe.loading import load
from trainer.tasks.preflight import notes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FLOAT = torch.float32


def zeros(queries, keys, temperature):
    """What the kernel of torch 2.9 returned on a GPU that it was not built for."""
    return torch.zeros_like(queries), queries.new_zeros(len(queries))


def not_a_number(queries, keys, temperature):
    mean, log = fused(queries, keys, temperature)
    return mean * math.nan, log


def wrong_gradient(queries, keys, temperature):
    mean, log = fused(queries, keys, temperature)
    return mean * 1.01, log


def wrong_loss(queries, keys, temperature):
    mean, log = fused(queries, keys, temperature)
    return mean, log + 0.05


def raises(queries, keys, temperature):
    raise RuntimeError("no kernel image is available\nfor execution on the device")


WRONG = {
    zeros: "computes a wrong gradient (off by 1 of the largest value)",
    not_a_number: "computes a wrong gradient (off by nan of the largest value)",
    wrong_gradient: "computes a wrong gradient (off by 0.01 of the largest value)",
    wrong_loss: "computes a wrong log-sum-exp (off by 0.0059 of the largest value)",
    raises: "fails (no kernel image is available)",
}


@pytest.fixture
def compared(monkeypatch):
    """The CPU's kernel is compared too; calling this puts another one in its place."""
    monkeypatch.setattr(queue_attention, "COMPARED", ("cpu",))
    monkeypatch.setattr(queue_attention, "_faults", {})
    return lambda kernel: monkeypatch.setattr(queue_attention, "fused", kernel)


def test_where_torch_has_a_kernel(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(queue_attention, "fault", lambda *_: None)
    monkeypatch.setattr(queue_attention, "_faults", {})
    assert path(CPU, FLOAT, 128) == path(CPU, torch.float64, 3) == path(CUDA, FLOAT, 128) == "fused"
    assert path(CUDA, torch.float64, 128) == path(torch.device("mps"), FLOAT, 128) == "chunked"
    assert path(CUDA, FLOAT, 12) == "chunked"


@pytest.mark.parametrize("width", [3, 8, 128, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_right_kernel_has_no_fault(width, dtype):
    assert fault(fused, CPU, dtype, width) is fault(chunk, CPU, dtype, width) is None


@pytest.mark.parametrize("kernel", WRONG, ids=lambda kernel: kernel.__name__)
def test_a_wrong_kernel_is_not_used(compared, kernel):
    compared(kernel)
    assert fault_of_fused(CPU, FLOAT, 16) == WRONG[kernel]
    assert path(CPU, FLOAT, 16) == "chunked"
    keys, queries = units(4096, 16, seed=1), units(10, 16).float().requires_grad_()
    queue = filled_queue(keys, 512, "float32")
    loss = queue.log_sum_exp(queries, TAU, 8)
    loss.sum().backward()
    log, gradient = full_logits(queries.detach().double(), keys)
    assert (loss - log).abs().max() < 1e-5
    assert (queries.grad - gradient).norm() < 1e-5 * gradient.norm()


def test_the_comparison_is_made_once(compared):
    """A wait in each step would cost more than the kernel gains."""
    calls, waits = [], 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal waits
            waits += function.overloadpacket is torch.ops.aten._local_scalar_dense
            return function(*args, **(kwargs or {}))

    def counted(*arguments):
        calls.append(len(arguments[1]))
        return fused(*arguments)

    compared(counted)
    queries, keys = units(10, 16).float(), units(64, 16, seed=1).float()
    attend(queries, keys, TAU)
    assert calls == [2048, 64]
    with Watch():
        attend(queries, keys, TAU)
    assert calls == [2048, 64, 64]
    assert waits == 0
    attend(queries.double(), keys.double(), TAU)  # another type is another kernel
    assert calls == [2048, 64, 64, 2048, 64]


def test_lacking_memory_is_no_fault(compared):
    def greedy(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    compared(greedy)
    with pytest.raises(torch.OutOfMemoryError):
        path(CPU, FLOAT, 16)
    compared(fused)
    assert path(CPU, FLOAT, 16) == "fused"


def test_tensors_without_numbers_decide_nothing(compared):
    compared(zeros)
    with FakeTensorMode():
        assert path(CPU, FLOAT, 16) == "fused"
        mean, log = attend(torch.randn(10, 16), torch.randn(64, 16), TAU)
    assert (tuple(mean.shape), tuple(log.shape)) == ((10, 16), (10,))
    assert path(CPU, FLOAT, 16) == "chunked"


def test_random_numbers_are_left_alone(compared):
    before = torch.get_rng_state()
    assert path(CPU, FLOAT, 16) == "fused"
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_says_in_one_line_that_it_takes_plain_products(compared):
    def lines():
        recipe = load(["recipe=moco_cifar10", "precision=float32"]).recipe
        return [line for line in notes(recipe, 50_000, 1, CPU) if "attention" in line]

    (queue,) = lines()
    assert queue.endswith("fused attention")
    compared(zeros)
    queue_attention._faults.clear()
    queue, warning = lines()
    assert queue.endswith("chunked attention")
    assert warning.startswith(f"warning: torch's fused attention {WRONG[zeros]} on this device: the queue")
