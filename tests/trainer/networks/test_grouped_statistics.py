"""The three ways to normalise groups against each other, and Triton's kernels without a GPU."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.helpers import ROOT
from trainer.networks import grouped_statistics
from trainer.networks.batch_norm import GroupBatchNorm, update_running_stats
from trainer.networks.grouped_statistics import WAYS, computed_by, normalize_groups, way

NO_TRITON = importlib.util.find_spec("triton") is None
needs_triton = pytest.mark.skipif(NO_TRITON, reason="triton is not installed")
SHAPES = [((12, 5, 3, 3), 4), ((6, 7, 5, 4), 2), ((8, 33), 4), ((4, 3, 20, 20), 4), ((6, 2, 1, 1), 3)]


def run(
    name: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, size: int
) -> list[torch.Tensor]:
    """Output, statistics, and the gradients of x, weight and bias."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, weight, bias)]
    with computed_by(name):
        output, total = normalize_groups(*leaves, size, 1e-5)
    assert not total.requires_grad
    towards = torch.empty_like(x, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(1))
    return [output.detach(), total, *torch.autograd.grad((output.double() * towards).sum(), leaves)]


def arguments(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    x = (3 * torch.randn(shape, dtype=torch.float64) + 7).to(dtype)
    if last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    return [x, torch.rand(shape[1], dtype=parameters) + 0.5, torch.randn(shape[1], dtype=parameters)]


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_vectorized_is_torchs_group_by_group(shape, size, last):
    values = arguments(shape, torch.float64, last)
    expected, actual = (run(name, *values, size) for name in ("loop", "vectorized"))
    for one, other in zip(actual, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)
    for tensor in (actual[0], actual[2]):
        assert tensor.stride() == values[0].stride()  # no map is copied into another format


def test_gradients_of_a_group_do_not_reach_another():
    values = arguments((8, 3, 2, 2), torch.float64, True)
    before = run("vectorized", *values, 4)
    values[0][4:] += 5
    after = run("vectorized", *values, 4)
    assert torch.equal(before[0][:4], after[0][:4])
    assert torch.equal(before[2][:4], after[2][:4])


def test_bf16_maps_have_float32_statistics():
    values = arguments((8, 16, 4, 4), torch.bfloat16, True)
    exact = run("vectorized", values[0].double(), *(one.double() for one in values[1:]), 4)
    output, total, of_x, of_weight, of_bias = run("vectorized", *values, 4)
    assert (output.dtype, of_x.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (total.dtype, of_weight.dtype, of_bias.dtype) == (torch.float32,) * 3
    assert torch.allclose(total.double(), exact[1], rtol=1e-5)
    assert torch.allclose(output.double(), exact[0], rtol=0.01, atol=0.01)


def test_a_last_part_of_fewer_rows_is_a_group():
    values = arguments((10, 3), torch.float64, False)
    with computed_by("vectorized"):
        output, _ = normalize_groups(*values, 4, 1e-5)
        alone, _ = normalize_groups(values[0][8:], *values[1:], 2, 1e-5)
    assert torch.allclose(output[8:], alone, rtol=0, atol=1e-12)


def test_what_computes_where(monkeypatch):
    monkeypatch.setattr(grouped_statistics, "_faults", {})
    assert way(torch.device("cpu")) == "loop"
    for there, wrong, expected in (
        (True, None, "kernels"),
        (True, "fail", "vectorized"),
        (False, None, "vectorized"),
    ):
        monkeypatch.setattr(grouped_statistics, "_has_triton", lambda there=there: there)
        monkeypatch.setitem(grouped_statistics._faults, torch.device("cuda"), wrong)
        assert way(torch.device("cuda")) == expected
    assert set(WAYS) == {"loop", "vectorized", "kernels"}


def wrong_output(x, weight, bias, size, eps):
    output, total = WAYS["vectorized"](x, weight, bias, size, eps)
    return output * 1.001, total


def wrong_gradient(x, weight, bias, size, eps):
    output, total = WAYS["vectorized"](x, weight, bias, size, eps)
    return output.detach() + (output - output.detach()) * 1.001, total


def not_a_number(x, weight, bias, size, eps):
    output, total = WAYS["vectorized"](x, weight, bias, size, eps)
    return output, total * torch.nan


def no_compiler(*_):
    raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")


@pytest.mark.parametrize(
    ("kernels", "line"),
    [
        (WAYS["vectorized"], None),
        (WAYS["loop"], None),
        (wrong_output, "compute wrong values (off by 0.001 of the largest)"),
        (wrong_gradient, "compute wrong values (off by 0.001 of the largest)"),
        (not_a_number, "compute wrong values (off by nan of the largest)"),
        (no_compiler, "fail (Failed to find C compiler.)"),
    ],
)
def test_kernels_that_fail_or_are_wrong_are_seen(kernels, line):
    assert grouped_statistics.fault(kernels, torch.device("cpu")) == line


def test_kernels_are_compared_once_on_a_device(monkeypatch):
    calls = []
    monkeypatch.setattr(grouped_statistics, "_faults", {})
    monkeypatch.setattr(grouped_statistics, "COMPARED", ("cpu",))
    monkeypatch.setattr(grouped_statistics, "_has_triton", lambda: True)
    monkeypatch.setattr(grouped_statistics, "fault", lambda *words: calls.append(words) or "fail (why)")
    notes = [grouped_statistics.fault_of_kernels(torch.device("cpu")) for _ in range(3)]
    assert notes == ["fail (why)"] * 3
    assert len(calls) == 1


def test_lacking_memory_is_no_fault_of_the_kernels():
    def lacking(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        grouped_statistics.fault(lacking, torch.device("cpu"))


def trained(name: str) -> list[float]:
    """Figures of a network whose activation changes the norm's output in place, as those of ResNets do."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 6, 3), GroupBatchNorm(6, 4), nn.ReLU(inplace=True)
    net = nn.Sequential(*first, nn.Flatten(), nn.LazyLinear(2))
    net.double()
    images = torch.randn(8, 3, 6, 6, dtype=torch.float64)
    with computed_by(name):
        net(images).square().sum().backward()
    update_running_stats(net)
    return [p.grad.norm().item() for p in net.parameters()] + [net[1].running_var.sum().item()]


def test_a_network_trains_alike_either_way():
    assert trained("vectorized") == pytest.approx(trained("loop"), rel=1e-10)


# ---- Triton's kernels ---------------------------------------------------------------------------------

INTERPRETED = """
import torch
import trainer.networks.grouped_kernels as kernels
from tests.trainer.networks.test_grouped_statistics import SHAPES, arguments, run
kernels.SHARES = 2  # the interpreter is slow: shares of several tiles at few rows
for dtype, close in ((torch.float64, 1e-12), (torch.float32, 2e-4), (torch.bfloat16, 0.15)):
    for shape, size in [*SHAPES, ((4, 70, 5, 4), 2), ((2, 130), 2), ((2, 3, 17, 19), 1)]:
        for last in (True, False):
            values = arguments(shape, dtype, last)
            exact = run("vectorized", *(one.double() for one in values), size)
            actual = run("kernels", *values, size)
            for got, expected in zip(actual, exact, strict=True):
                scale = 1 + expected.abs().max()
                assert ((got.double() - expected).abs().max() / scale) < close, (dtype, shape, last)
            assert dtype != torch.float32 or all(map(torch.equal, actual, run("kernels", *values, size)))
from torch import library
x, weight, bias = (one.requires_grad_() for one in arguments((4, 3, 2, 2), torch.float32, True))
output, _ = kernels.normalize(x, weight, bias, 2, 1e-5)
output.relu_().sum().backward()  # activations change it in place
library.opcheck(kernels._forward, (x, weight, bias, 2, 1e-5), test_utils=("test_schema", "test_faketensor"))
print("equal")
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from trainer.networks import grouped_kernels as kernels
TILE = {"ROWS": kernels.ROWS, "FEATURES": kernels.FEATURES}
MAPS, NUMBERS = {"x", "y", "dx", "dy"}, {*kernels.COUNTS, "features"}
def kind(name, of_maps):
    if name in TILE:
        return "constexpr"
    if name in NUMBERS:
        return "i32"
    return "fp32" if name == "eps" else f"*{of_maps if name in MAPS else 'fp32'}"
names = [name for name, one in vars(kernels).items() if isinstance(one, triton.runtime.JITFunction)]
for name in names:
    kernel = getattr(kernels, name)
    for of_maps in ("fp32", "bf16"):
        constants = {one: TILE[one] for one in kernel.arg_names if one in TILE}
        source = ASTSource(kernel, {one: kind(one, of_maps) for one in kernel.arg_names}, constants)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert made.asm["cubin"] and "atom" not in made.asm["ptx"], name
print(len(names))
"""


def in_python(code: str, folder, **variables: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(folder)} | variables
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()[-1]


@needs_triton
@pytest.mark.slow
def test_kernels_equal_float64_in_tritons_interpreter(tmp_path):
    assert in_python(INTERPRETED, tmp_path, TRITON_INTERPRET="1") == "equal"


@needs_triton
@pytest.mark.slow
def test_kernels_compile_for_a_gpu_without_atomics(tmp_path):
    """To the binary of an H100, by the assembler that triton brings."""
    assert in_python(COMPILED, tmp_path) == "6"
