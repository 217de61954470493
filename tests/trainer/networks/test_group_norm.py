"""The group-norm of denoisers, against torch's."""

import pytest
import torch
import torch.nn.functional as F

from trainer.networks.group_norm import group_norm


@pytest.mark.parametrize(
    ("channels", "groups"), [(128, 32), (256, 32), (96, 24), (32, 8), (24, 6), (8, 2), (3, 1)]
)
def test_groups_are_those_published_and_have_four_channels(channels, groups):
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float32, 0), (torch.float64, 0), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_torchs_in_any_layout(dtype, within, layout):
    torch.manual_seed(0)
    norm = group_norm(32).to(dtype)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-1, 1)
    x = torch.randn(3, 32, 6, 5, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    expected = F.group_norm(x, 8, norm.weight, norm.bias, 1e-6)
    weights = torch.randn_like(expected)
    (right,) = torch.autograd.grad((expected * weights).sum(), x)
    output = norm(x)
    (gradient,) = torch.autograd.grad((output * weights).sum(), x)
    torch.testing.assert_close(output, expected, rtol=within, atol=within)
    torch.testing.assert_close(gradient, right, rtol=within, atol=within)
    if dtype is torch.bfloat16:  # normalised by the kernel that is fast, which leaves its layout
        assert output.is_contiguous()
