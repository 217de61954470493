"""The encoder as published: shapes and numbers of parameters."""

import pytest
import torch
from torch import nn

from trainer.networks.dim_encoder import DimEncoder

PUBLISHED = {"size": 32, "channels": [64, 128, 256], "fc": 1024, "y": 64, "group": 2}


def test_the_32_pixel_network_is_the_published_one():
    encoder = DimEncoder(**PUBLISHED)
    features = encoder(torch.randn(2, 3, 32, 32))
    shapes = {name: tuple(value.shape[1:]) for name, value in features.items()}
    assert shapes == {"local": (128, 8, 8), "conv": (4096,), "fc": (1024,), "y": (64,)}
    assert encoder.widths == {"conv": 4096, "fc": 1024, "y": 64}
    assert (encoder.local_channels, encoder.local_side) == (128, 8)
    assert sum(p.numel() for p in encoder.parameters()) == 4_921_280  # 4.92 M


def test_the_64_pixel_network_is_the_published_one():
    encoder = DimEncoder(**PUBLISHED | {"size": 64, "channels": [64, 128, 256, 512]})
    features = encoder(torch.randn(2, 3, 64, 64))
    shapes = {name: tuple(value.shape[1:]) for name, value in features.items()}
    assert shapes == {"local": (256, 8, 8), "conv": (8192,), "fc": (1024,), "y": (64,)}


def test_layers_are_convolution_norm_relu_and_y_is_linear_with_bias():
    encoder = DimEncoder(**PUBLISHED)
    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    for layer, channels in zip(convolutions, (64, 128, 256), strict=True):
        assert (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
        assert layer.out_channels == channels
        assert layer.bias is None  # batch-norm follows
    assert encoder.fc[0].bias is None
    assert encoder.y.bias is not None
    features = encoder(torch.randn(4, 3, 32, 32))
    assert features["local"].min() == features["conv"].min() == features["fc"].min() == 0  # behind a ReLU
    assert features["y"].min() < 0
    assert torch.equal(features["y"], encoder.y(features["fc"]))


def test_the_tail_starts_with_the_local_maps_own_convolution_again():
    with torch.device("meta"):
        tail, width = DimEncoder(**PUBLISHED).tail()
        assert tail(torch.empty(2, 128, 8, 8)).shape == (2, 1024)
    assert width == 1024
    convolutions = [layer for layer in tail.modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [(128, 128), (128, 256)]
    assert {(layer.kernel_size, layer.stride, layer.padding) for layer in convolutions} == {
        ((4, 4), (2, 2), (1, 1))
    }
    linear = next(layer for layer in tail.modules() if isinstance(layer, nn.Linear))
    assert (linear.in_features, linear.out_features) == (256 * 2 * 2, 1024)
    assert (
        sum(p.numel() for p in tail.parameters()) == 16 * 128 * (128 + 256) + 2 * 384 + 1024 * 1024 + 2 * 1024
    )


def test_a_local_map_too_small_to_start_at_again_is_refused():
    with pytest.raises(ValueError, match=r"channels=\[8, 16, 32\]: the local map is 2 x 2; .* need 4 x 4"):
        DimEncoder(size=8, channels=[8, 16, 32], fc=8, y=4, group=2).tail()


def test_evaluation_takes_one_image_and_does_not_depend_on_its_neighbours():
    encoder = DimEncoder(size=16, channels=[8, 16], fc=32, y=4, group=4).eval()
    images = torch.randn(3, 3, 16, 16)
    alone, together = encoder(images[:1]), encoder(images)
    for name, value in alone.items():
        assert torch.allclose(value, together[name][:1], atol=1e-6)


@pytest.mark.parametrize("size", [12, 28, 33, 100])
def test_an_image_that_cannot_be_halved_is_refused_with_what_is_needed(size):
    with pytest.raises(ValueError, match=rf"size={size} cannot be halved 3 times .* a multiple of 8"):
        DimEncoder(**PUBLISHED | {"size": size})


def test_layouts_do_not_change_the_result():
    encoder = DimEncoder(size=16, channels=[8, 16], fc=32, y=4, group=2).double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    first = encoder(images)
    second = encoder.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=1e-12)
