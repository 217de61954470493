"""The NVAE-style autoencoder: published sizes, layouts of the latent, cells against plain formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data_pipelines.common.errors import UserError
from trainer.networks.nvae import NvaeEncoder
from trainer.networks.nvae_cells import (
    HalvingShortcut,
    InvertedCell,
    ResidualCell,
    SqueezeExcitation,
    WeightNormConv2d,
)
from trainer.recipe.encoders import Nvae
from trainer.recipe.loading import load
from trainer.training.build import build_objective

TINY = {"width": 4, "cells": 1, "tower": 1, "decoder_tower": 1, "expansion": 2, "group": 2}


def millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.fixture(scope="module")
def published() -> NvaeEncoder:
    options = Nvae(kind="nvae").model_dump(exclude={"kind"})
    with torch.device("meta"):
        return NvaeEncoder(size=32, group=32, **options)


def test_the_published_network_has_the_published_sizes(published):
    assert published.widths == {"z": 1536, "w": 768, "y": 768}
    assert (published.local_channels, published.local_side) == (256, 16)
    with torch.device("meta"):
        decoder = published.decoder()
    # d2c's, computed for a latent of 10 channels: 15.6 and 9.0 million
    assert millions(published) == pytest.approx(15.6, abs=0.1)
    assert millions(decoder) == pytest.approx(9.0, abs=0.15)
    kinds = [type(layer) for layer in published.layers]
    assert kinds.count(ResidualCell) == 1 + 1 + 12
    assert [type(layer) for layer in decoder.layers].count(InvertedCell) == 10 + 1 + 1


@pytest.mark.parametrize(
    ("size", "patch", "halvings"), [(32, 1, 1), (32, 2, 0), (64, 1, 2), (128, 2, 2), (256, 4, 2)]
)
@pytest.mark.parametrize("layout", ["map", "pooled"])
def test_every_size_goes_down_to_sixteen_and_back(size, patch, halvings, layout):
    encoder = NvaeEncoder(size=size, patch=patch, halvings=halvings, latent=6, layout=layout, **TINY)
    images = torch.randn(2, 3, size, size)
    features = encoder(images)
    assert features["local"].shape == (2, encoder.local_channels, 16, 16)
    assert {name: rows.shape[1] for name, rows in features.items() if name != "local"} == encoder.widths
    assert encoder.widths == {"z": 1536, "w": 768, "y": 768}
    assert torch.equal(features["z"], torch.cat([features["y"], features["w"]], 1))
    assert encoder.decoder()(features["y"], features["w"]).shape == images.shape


def test_y_of_a_map_is_the_first_half_of_its_channels():
    encoder = NvaeEncoder(size=16, patch=1, halvings=1, latent=6, layout="map", **TINY)
    images = torch.randn(2, 3, 16, 16)
    made = encoder.to_map(encoder.layers(images))
    assert torch.equal(encoder(images)["y"], made[:, :3].flatten(1))


def test_a_pooled_y_forgets_where_things_are():
    encoder = NvaeEncoder(size=16, patch=1, halvings=0, latent=2, layout="pooled", **TINY).eval()
    image = torch.zeros(1, 3, 16, 16)
    image[:, :, 4:8, 4:8] = 1.0
    moved = image.roll(4, dims=3)  # one place of the grid to the right, the borders untouched
    for name, near in (("y", True), ("w", False)):
        difference = (encoder(image)[name] - encoder(moved)[name]).abs().max()
        assert (difference < 0.05) == near, name


def test_the_tail_starts_at_the_local_map():
    encoder = NvaeEncoder(size=16, patch=1, halvings=1, latent=2, layout="map", **TINY)
    tail, width = encoder.tail()
    assert tail(encoder(torch.randn(2, 3, 16, 16))["local"]).shape == (2, width)


def test_a_tail_of_an_odd_map_is_refused():
    encoder = NvaeEncoder(size=12, patch=1, halvings=2, latent=2, layout="map", **TINY)
    with pytest.raises(ValueError, match="3 x 3"):
        encoder.tail()


@pytest.mark.parametrize("layout", ["map", "pooled"])
def test_one_channel_is_refused_only_where_it_is_halved(layout):
    narrow = NvaeEncoder(size=16, patch=1, halvings=0, latent=2, layout=layout, **TINY | {"width": 1})
    assert narrow(torch.randn(2, 3, 16, 16))["local"].shape == (2, 1, 16, 16)
    with pytest.raises(ValueError, match=r"^width=1"):
        narrow.tail()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.size=36"], ["data.size=36", "halvings", "multiple of 8"]),
        (["encoder.latent=5", "data.size=32"], ["encoder.latent=5", "even"]),
        (["encoder.width=1", "data.size=32"], ["encoder.width=1", "2 channels", "width=2 or more"]),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(overrides, words):
    arguments = ["recipe=hybrid_cifar10", "encoder.halvings=3", *overrides]
    with torch.device("meta"), pytest.raises(UserError) as refused:
        build_objective(load(arguments).recipe)
    assert all(word in str(refused.value) for word in words)
    assert "\n" not in str(refused.value)


# ---- the cells --------------------------------------------------------------------------------------


def test_weight_norm_is_its_formula():
    torch.manual_seed(0)
    layer = WeightNormConv2d(3, 5, 3, 1, 1).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    filters = torch.stack(
        [v / (v.norm() + 1e-5) * g.exp() for v, g in zip(layer.weight, layer.log_norm, strict=True)]
    )
    assert torch.allclose(layer(x), F.conv2d(x, filters, layer.bias, 1, 1), atol=1e-13)
    start = nn.Conv2d(3, 5, 3, 1, 1)
    start.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "log_norm"})
    assert torch.allclose(layer(x), start.double()(x), rtol=0.05, atol=0.05)  # it starts as a plain one


def test_the_halving_shortcut_sees_every_pixel():
    layer = HalvingShortcut(1, 7)
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    made = layer(x)
    assert made.shape == (1, 7, 2, 2)
    made.square().sum().backward()
    assert (x.grad != 0).all()


def test_squeeze_and_excitation_is_its_formula():
    layer = SqueezeExcitation(32).double()
    x = torch.randn(2, 32, 4, 4, dtype=torch.float64)
    scale = layer.layers(x.mean((2, 3)))
    assert torch.allclose(layer(x), x * scale[:, :, None, None], atol=1e-13)
    assert layer.layers[0].out_features == 4


def test_a_cell_is_its_shortcut_and_a_tenth_of_its_body():
    def norm(features: int) -> nn.Module:
        return nn.GroupNorm(1, features)

    x = torch.randn(2, 8, 4, 4)
    for cell in (ResidualCell(8, 8, norm), InvertedCell(8, 8, 3, norm)):
        assert torch.allclose(cell(x), x + 0.1 * cell.body(x), atol=1e-6)
    up = InvertedCell(8, 4, 3, norm, up=True)
    assert up(x).shape == (2, 4, 8, 8)
    assert ResidualCell(8, 12, norm, down=True)(x).shape == (2, 12, 2, 2)
