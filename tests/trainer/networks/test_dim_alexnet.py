"""The AlexNets of Deep InfoMax as published: shapes, layers, numbers of parameters."""

import torch
from torch import nn

from trainer.networks.dim_alexnet import DimAlexNet, FoldedAlexNet

PUBLISHED = {"size": 64, "channels": [96, 192, 384, 384, 192], "fc": 4096, "y": 64, "group": 64}
TINY = {"channels": [4, 6, 8, 8, 6], "fc": 10, "y": 5, "group": 2}


def shapes(encoder: nn.Module) -> dict[str, tuple]:
    return {name: tuple(value.shape[1:]) for name, value in encoder(torch.empty(64, 3, 64, 64)).items()}


def weights(before: int, channels: list[int]) -> int:
    """Parameters of convolutions of 3x3 without bias and their batch-norms, written out."""
    return sum(9 * one * two + 2 * two for one, two in zip([before, *channels], channels, strict=False))


def test_the_64_pixel_network_is_the_published_one():
    with torch.device("meta"):
        encoder = DimAlexNet(**PUBLISHED)
        tail, width = encoder.tail()
        sizes = shapes(encoder)
        assert tail(torch.empty(64, 384, 15, 15)).shape == (64, 4096)
    assert sizes == {"local": (384, 15, 15), "conv": (9408,), "fc": (4096,), "y": (64,)}
    assert (encoder.local_channels, encoder.local_side, width) == (384, 15, 4096)
    assert encoder.widths == {"conv": 9408, "fc": 4096, "y": 64}
    fc = 9408 * 4096 + 4096 * 4096 + 4 * 4096
    convolutions = weights(3, PUBLISHED["channels"])
    assert sum(p.numel() for p in encoder.parameters()) == convolutions + fc + 4096 * 64 + 64
    assert sum(p.numel() for p in tail.parameters()) == weights(384, [384, 384, 192]) + fc


def test_the_sides_of_the_maps_are_the_published_ones():
    encoder, sides = DimAlexNet(**TINY | {"size": 64}), []
    for layer in encoder.convolutions:
        layer.register_forward_hook(lambda _, __, output: sides.append(output.shape[-1]))
    features = encoder(torch.randn(2, 3, 64, 64))
    assert sides == [31, 15, 15, 15, 7]
    assert [len(layer) for layer in encoder.convolutions] == [4, 4, 3, 3, 4]  # a pooling behind 1, 2 and 5
    for layer in encoder.convolutions:
        convolution = layer[0]
        assert (convolution.kernel_size, convolution.stride, convolution.padding) == ((3, 3), (1, 1), (1, 1))
        assert convolution.bias is None
    assert torch.equal(features["fc"], encoder.fc[1](encoder.fc[0](features["conv"])))
    assert torch.equal(features["y"], encoder.y(features["fc"]))


def test_the_folded_network_is_the_published_one():
    with torch.device("meta"):
        encoder = FoldedAlexNet(**PUBLISHED)
        tail, width = encoder.tail()
        sizes = shapes(encoder)
        assert tail(torch.empty(64, 192, 7, 7)).shape == (64, 4096)
    assert sizes == {"local": (192, 7, 7), "conv": (9408,), "fc": (4096,), "y": (64,)}
    assert (encoder.local_channels, encoder.local_side, width) == (192, 7, 4096)
    folded = weights(192, [384]) + 384 * 3 * 3 * 4096 + 2 * 4096
    assert sum(p.numel() for p in tail.parameters()) == folded
    total = weights(3, PUBLISHED["channels"]) + folded + 4096 * 64 + 64
    assert sum(p.numel() for p in encoder.parameters()) == total


def test_the_folded_network_starts_small_on_the_patches_and_in_fc():
    torch.manual_seed(0)
    encoder = FoldedAlexNet(size=32, channels=[32, 32, 32, 32, 32], fc=64, y=4, group=2)
    small = [layer[0].weight for layer in encoder.convolutions] + [encoder.fc[2][0].weight]
    for weight in small:
        assert 0.017 < weight.std() < 0.023
        assert weight.abs().max() > 0.04  # normal, not uniform
