"""Max-pooling in order, as GPUs do it, against torch's."""

import pytest
import torch
import torch.nn.functional as F

from trainer.networks.pooling import MaxPool, max_pool_in_order

SHAPES = [(2, 3, 9, 9), (1, 4, 8, 7), (2, 2, 3, 3), (1, 1, 3, 1)]
WINDOWS = [(3, 2, 1), (3, 2, 0), (2, 2, 0), (3, 1, 1)]  # size, stride, padding: the first two are in use
CASES = [
    (shape, window) for shape in SHAPES for window in WINDOWS if min(shape[2:]) + 2 * window[2] >= window[0]
]


@pytest.mark.parametrize(("shape", "window"), CASES)
@pytest.mark.parametrize("values", [2, 1000])  # of 2 values, most windows have several greatest
def test_values_and_gradients_are_torchs(shape, window, values):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(values, shape, generator=generator).double() - values // 2
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = F.max_pool2d(x, *window)
    weights = torch.randint(
        -8, 9, expected.shape, generator=generator
    ).double()  # sums are exact in any order
    output = max_pool_in_order(x, *window)
    assert torch.equal(output, expected)
    gradients = [torch.autograd.grad((one * weights).sum(), x)[0] for one in (output, expected)]
    assert torch.equal(*gradients)
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)


def test_many_bf16_gradients_are_added_in_float32():
    x = torch.zeros(1, 1, 3, 3, dtype=torch.bfloat16)
    x[..., 1, 1] = 1  # the greatest of all nine windows
    x.requires_grad_()
    weights = torch.tensor([256.0] + 8 * [0.75], dtype=torch.bfloat16).reshape(1, 1, 3, 3)
    (gradient,) = torch.autograd.grad((max_pool_in_order(x, 3, 1, 1) * weights).sum(), x)
    assert gradient[0, 0, 1, 1] == 262  # added in bf16 it would stay 256


def test_a_cpu_uses_torchs():
    x = torch.randn(2, 3, 9, 9).requires_grad_()
    output = MaxPool(3, 2, 1)(x)
    assert type(output.grad_fn).__name__ == "MaxPool2DWithIndicesBackward0"
    assert torch.equal(output, F.max_pool2d(x, 3, 2, 1))
