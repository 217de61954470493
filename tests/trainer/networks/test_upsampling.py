"""Upsampling by matrices, as GPUs do it, against torch's."""

import pytest
import torch
import torch.nn.functional as F

from trainer.networks.upsampling import doubling, upsample_bilinear, upsample_by_matrices


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 5, 4, 4), (1, 2, 3, 7), (2, 8, 16, 16)])
def test_matrices_give_torchs_values_and_gradients(shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
    weights = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), x)
    output = upsample_by_matrices(x)
    assert torch.allclose(output, expected, rtol=0, atol=1e-13)
    assert torch.allclose(torch.autograd.grad((output * weights).sum(), x)[0], gradient, rtol=0, atol=1e-12)
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_constant_maps_stay_constant_under_autocast():
    x = torch.full((1, 2, 5, 5), 3.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(upsample_by_matrices(x), torch.full((1, 2, 10, 10), 3.0), rtol=1e-6)
        assert upsample_by_matrices(x.bfloat16()).dtype == torch.bfloat16
    assert torch.allclose(doubling(7, torch.float64, x.device).sum(1), torch.ones(14, dtype=torch.float64))


def test_a_cpu_uses_torchs():
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(
        upsample_bilinear(x), F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
    )
