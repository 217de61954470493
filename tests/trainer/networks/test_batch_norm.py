"""Group batch-norm against torch's own, group by group."""

import pytest
import torch
from torch import nn

from trainer.networks.batch_norm import GroupBatchNorm, normalization, recalibrate, update_running_stats


def layers(features: int = 5, group: int = 4, dtype=torch.float64) -> tuple[GroupBatchNorm, nn.BatchNorm2d]:
    """Ours and torch's with the same random weight and bias."""
    torch.manual_seed(0)
    ours, torchs = GroupBatchNorm(features, group).to(dtype), nn.BatchNorm2d(features).to(dtype)
    with torch.no_grad():
        ours.weight.uniform_(0.5, 2)
        ours.bias.normal_()
    torchs.load_state_dict(ours.state_dict(), strict=False)
    return ours, torchs


def images(n: int = 12, features: int = 5, dtype=torch.float64, seed: int = 1) -> torch.Tensor:
    """Each image has a level and a scale of its own, so that groups differ."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, 3, 3, generator=generator, dtype=dtype)
    return x * (1 + torch.arange(n, dtype=dtype))[:, None, None, None] + torch.arange(features)[:, None, None]


def group_statistics(x: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean over groups of (mean, unbiased variance), computed directly."""
    parts = [part.transpose(0, 1).flatten(1) for part in x.split(group)]
    mean = torch.stack([part.mean(1) for part in parts]).mean(0)
    return mean, torch.stack([part.var(1, unbiased=True) for part in parts]).mean(0)


def test_each_group_is_normalised_as_torch_normalises_it_alone():
    ours, torchs = layers()
    x = images().requires_grad_()
    output = ours(x)
    alone = torch.cat([torchs(part) for part in x.split(4)])
    assert torch.allclose(output, alone, rtol=0, atol=1e-12)
    weights = torch.randn_like(output)
    of_ours = torch.autograd.grad((output * weights).sum(), [x, ours.weight, ours.bias], retain_graph=True)
    of_torch = torch.autograd.grad((alone * weights).sum(), [x, torchs.weight, torchs.bias])
    for one, other in zip(of_ours, of_torch, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)


def test_vectors_are_normalised_as_well():
    ours, _ = layers(group=6)
    alone = nn.BatchNorm1d(5, dtype=torch.float64)
    alone.load_state_dict(ours.state_dict(), strict=False)
    x = images()[:, :, 0, 0]
    assert torch.allclose(ours(x), torch.cat([alone(x[:6]), alone(x[6:])]), rtol=0, atol=1e-12)


def test_another_group_changes_nothing():
    ours, _ = layers()
    x = images()
    before = ours(x)
    x[8:] += 100
    assert torch.equal(ours(x)[:8], before[:8])


def test_running_statistics_move_once_at_the_commit_by_the_mean_over_groups():
    ours, _ = layers()
    x = images()
    mean, var = group_statistics(x, 4)
    ours(x)
    assert torch.equal(ours.running_mean, torch.zeros_like(mean))  # the forward pass moves nothing
    assert torch.equal(ours.running_var, torch.ones_like(var))
    update_running_stats(ours)
    assert torch.allclose(ours.running_mean, 0.1 * mean, rtol=1e-12, atol=0)
    assert torch.allclose(ours.running_var, 0.9 + 0.1 * var, rtol=1e-12, atol=0)
    before = ours.running_mean.clone()
    update_running_stats(ours)  # nothing was seen since
    assert torch.equal(ours.running_mean, before)
    ours(images(seed=2))
    update_running_stats(ours)
    later, _ = group_statistics(images(seed=2), 4)
    assert torch.allclose(ours.running_mean, 0.9 * 0.1 * mean + 0.1 * later, rtol=1e-12, atol=1e-14)


def test_one_group_moves_as_torch_moves():
    ours, torchs = layers(group=12)
    for seed in range(3):
        ours(images(seed=seed))
        torchs(images(seed=seed))
        update_running_stats(ours)
    assert torch.allclose(ours.running_mean, torchs.running_mean, rtol=1e-12, atol=1e-14)
    assert torch.allclose(ours.running_var, torchs.running_var, rtol=1e-12, atol=1e-14)


def test_micro_batches_move_the_statistics_as_the_whole_batch_does():
    x = images()
    moved = []
    for micro in (12, 8, 4):  # 8 leaves 4: micro-batches need not be equal here
        ours, _ = layers()
        for part in x.split(micro):
            ours(part)
        update_running_stats(ours)
        moved.append((ours.running_mean, ours.running_var))
    for mean, var in moved[1:]:
        assert torch.allclose(mean, moved[0][0], rtol=1e-12, atol=0)
        assert torch.allclose(var, moved[0][1], rtol=1e-12, atol=0)


def test_all_layers_of_a_module_are_committed_each_with_its_own():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(5, 3, 1), GroupBatchNorm(3, 4), nn.ReLU(), GroupBatchNorm(3, 2)).double()
    x = images()
    net(x)
    update_running_stats(net)
    first = net[0](x).detach()
    second = net[2](net[1](first)).detach()
    for norm, seen, group in ((net[1], first, 4), (net[3], second, 2)):
        mean, var = group_statistics(seen, group)
        assert torch.allclose(norm.running_mean, 0.1 * mean, rtol=1e-10, atol=1e-14)
        assert torch.allclose(norm.running_var, 0.9 + 0.1 * var, rtol=1e-10, atol=0)


def test_evaluation_is_torchs():
    ours, torchs = layers()
    ours(images())
    update_running_stats(ours)
    torchs.load_state_dict(ours.state_dict(), strict=False)
    ours.eval()
    torchs.eval()
    x = images(7, seed=3)  # any number of images
    assert torch.equal(ours(x), torchs(x))
    before = ours.running_mean.clone()
    update_running_stats(ours)
    assert torch.equal(ours.running_mean, before)


def test_names_are_torchs_and_what_is_pending_is_not_saved():
    ours, torchs = layers()
    ours(images())
    assert set(ours.state_dict()) == set(torchs.state_dict()) - {"num_batches_tracked"}


def test_recalibration_takes_the_mean_over_groups_of_clean_images():
    ours, _ = layers()
    ours(images(seed=5))
    update_running_stats(ours)
    ours.eval()
    batches = [images(10, seed=6), images(8, seed=7)]  # of the ten, two are left out
    recalibrate(ours, batches)
    mean, var = group_statistics(torch.cat([batches[0][:8], batches[1]]), 4)
    assert torch.allclose(ours.running_mean, mean, rtol=1e-12, atol=0)
    assert torch.allclose(ours.running_var, var, rtol=1e-12, atol=0)
    assert not ours.training
    assert ours.pending is None  # a later commit has nothing of it
    recalibrate(ours, [images(3, seed=8)])  # fewer than a group: one group
    assert torch.allclose(ours.running_mean, images(3, seed=8).mean((0, 2, 3)), rtol=1e-12, atol=0)


def test_recalibrating_a_network_makes_evaluation_equal_training_on_the_same_group():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(5, 6, 3), GroupBatchNorm(6, 12), nn.ReLU(), nn.Conv2d(6, 4, 1)).double()
    x = images()
    trained = net(x)
    update_running_stats(net)
    recalibrate(net, [x])
    net.eval()
    n = 12  # values a feature: running statistics hold the unbiased variance, training uses the biased one
    norm = net[1]
    norm.running_var *= (n - 1) / n
    assert torch.allclose(net(x), trained, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_keep_the_precision_of_the_parameters(dtype):
    ours, _ = layers(dtype=dtype)
    assert ours(images(dtype=dtype)).dtype == dtype
    assert ours.pending.dtype == dtype


def test_bf16_autocast_runs_forward_and_backward_with_float32_statistics():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(5, 8, 3, bias=False), GroupBatchNorm(8, 4))
    x = images(dtype=torch.float32) / 12
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(x)
    output.float().square().sum().backward()
    update_running_stats(net)
    assert net[1].running_var.dtype == torch.float32
    mean, var = group_statistics(net[0](x).detach(), 4)
    assert torch.allclose(net[1].running_mean, 0.1 * mean, atol=2e-3)
    assert torch.allclose(net[1].running_var, 0.9 + 0.1 * var, rtol=1e-2)
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_an_image_of_several_rows_stays_in_its_group():
    ours, _ = layers(group=4)
    patched = GroupBatchNorm(5, group=2, rows=2).double()
    patched.load_state_dict(ours.state_dict())
    x = images()  # 12 rows: 6 images of 2 rows, in groups of 2
    assert torch.equal(patched(x), ours(x))
    update_running_stats(patched)
    update_running_stats(ours)
    assert torch.equal(patched.running_var, ours.running_var)


def test_recalibration_cuts_batches_at_groups_of_images_whatever_their_rows():
    norm = GroupBatchNorm(3, group=2, rows=4).double()
    net = nn.Sequential(nn.Unflatten(1, (4, 3)), nn.Flatten(0, 1), norm)  # an image of 12 numbers: 4 rows
    batch = torch.randn(7, 12, dtype=torch.float64)
    recalibrate(net, [batch])
    mean, var = group_statistics(batch[:6].reshape(24, 3, 1), 8)
    assert torch.allclose(norm.running_mean, mean, atol=1e-12)
    assert torch.allclose(norm.running_var, var, atol=1e-12)


def test_the_norm_of_a_layer_is_chosen_by_name():
    norm = normalization("batch", 64, group=8, rows=49)
    assert (type(norm), norm.group, norm.rows) == (GroupBatchNorm, 8, 49)
    groups = {
        features: normalization("group", features, 8).num_groups for features in (1024, 512, 64, 40, 33, 8)
    }
    assert groups == {1024: 32, 512: 32, 64: 4, 40: 2, 33: 1, 8: 1}
    with pytest.raises(ValueError, match=r"^norm=layer: expected batch or group$"):
        normalization("layer", 64, 8)


@pytest.mark.parametrize("features", [4, 16, 33, 256])
def test_group_norm_leaves_a_vector_its_differences(features):
    torch.manual_seed(0)
    assert normalization("group", features, 8)(torch.randn(3, features)).abs().min(1).values.max() > 0
