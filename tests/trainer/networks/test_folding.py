"""Folding, and the folded ResNet against the same network patch by patch."""

import pytest
import torch
import torch.nn.functional as F

from trainer.networks.folded_resnet import FoldedResNet
from trainer.networks.layers import fold, patch_grid, refold

TINY = {"size": 16, "depth": 19, "width": 2, "fc": 6, "y": 3, "group": 2}


def pictures(n: int = 2, size: int = 16) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(
    ("size", "patch", "side"), [(32, 8, 7), (64, 16, 7), (16, 8, 3), (8, 8, 1), (12, 8, 2)]
)
def test_patches_are_those_of_torch_in_their_order(size, patch, side):
    images = pictures(size=size)
    assert patch_grid(size, patch) == side
    wanted = F.unfold(images, patch, stride=patch // 2).transpose(1, 2).reshape(-1, 3, patch, patch)
    assert torch.equal(fold(images, patch), wanted)
    assert wanted.shape[0] == 2 * side * side


def test_a_refolded_map_has_its_patches_in_place():
    patches = fold(pictures(), 8).mean((2, 3), keepdim=True)
    refolded = refold(patches, 3)
    assert refolded.shape == (2, 3, 3, 3)
    for row in range(3):
        for column in range(3):
            there = pictures()[:, :, 4 * row : 4 * row + 8, 4 * column : 4 * column + 8].mean((2, 3))
            assert torch.allclose(refolded[:, :, row, column], there, atol=1e-14)


@pytest.mark.parametrize(("depth", "blocks"), [(19, [2, 2, 2]), (37, [3, 6, 3])])
def test_the_network_is_the_published_one(depth, blocks):
    with torch.device("meta"):
        encoder = FoldedResNet(size=32, depth=depth, width=64, fc=1024, y=64, group=64)
        tail, width = encoder.tail()
        features = encoder(torch.empty(64, 3, 32, 32))
        assert tail(features["local"]).shape == (64, 1024)
    shapes = {name: tuple(value.shape[1:]) for name, value in features.items()}
    assert shapes == {"local": (1024, 7, 7), "conv": (50176,), "fc": (1024,), "y": (64,)}
    assert (encoder.local_channels, encoder.local_side, width) == (1024, 7, 1024)
    assert [len(stage) for stage in encoder.stages] == blocks
    assert 1 + 3 * sum(blocks) == depth  # convolutions in a row, shortcuts apart


def test_a_patch_of_8_pixels_becomes_4_then_4_then_2_then_1():
    encoder, sides = FoldedResNet(**TINY), []
    for layer in (encoder.stem, *encoder.stages):
        layer.register_forward_hook(lambda _, __, output: sides.append(output.shape[-1]))
    encoder(torch.randn(2, 3, 16, 16))
    assert sides == [4, 4, 2, 1]


def test_a_place_of_the_local_map_saw_its_patch_alone():
    encoder = FoldedResNet(**TINY).double().eval()
    images = pictures()
    local = encoder(images)["local"]
    patch = images[1:, :, 4:12, 8:16]
    assert torch.allclose(encoder.stages(encoder.stem(patch))[0, :, 0, 0], local[1, :, 1, 2], atol=1e-12)


def test_statistics_are_over_all_patches_of_the_images_of_a_group():
    encoder = FoldedResNet(**TINY).double()
    images = pictures(4)
    images[2:] = 3 * images[2:] + 1
    seen = []
    encoder.stem[1].register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    encoder(images)
    by_group = seen[0].unflatten(0, (2, 2 * 9))  # two groups of two images of nine patches
    assert torch.allclose(by_group.mean((1, 3, 4)), torch.zeros(2, 2, dtype=torch.float64), atol=1e-12)
    variance = by_group.var((1, 3, 4), unbiased=False)
    assert torch.allclose(variance, torch.ones_like(variance), atol=1e-3)
    assert by_group.unflatten(1, (2, 9)).mean((2, 4, 5)).abs().max() > 1e-3  # an image of it has another mean
