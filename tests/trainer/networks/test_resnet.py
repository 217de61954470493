"""ResNet: torchvision's names, shapes and numbers of parameters, and its arithmetic written out."""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.torchvision_shapes import BLOCKS, torchvision_shapes
from trainer.networks.nvae_cells import InvertedCell, ResidualCell
from trainer.networks.resnet import ResNet

SMALL = {"size": 32, "stem": "cifar", "width": 4, "local": "layer3", "y": 5, "group": 2}


@pytest.mark.parametrize(
    ("depth", "count"), [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160)]
)
def test_names_and_numbers_of_parameters_are_torchvisions(depth, count):
    with torch.device("meta"):
        network = ResNet(size=224, depth=depth, stem="imagenet", width=64, local="layer3", y=64, group=32)
    names = {name for name in torchvision_shapes(depth) if "num_batches" not in name}
    assert set(network.state_dict()) == names | {"y.weight", "y.bias"}
    assert sum(p.numel() for n, p in network.named_parameters() if not n.startswith("y.")) == count


def test_weights_with_torchs_count_of_batches_load_strictly():
    torch.manual_seed(0)
    one, two = ResNet(depth=18, **SMALL), ResNet(depth=18, **SMALL)
    weights = dict(one.state_dict())
    counts = [name for name in torchvision_shapes(18) if name.endswith("num_batches_tracked")]
    assert len(counts) == 20
    weights |= dict.fromkeys(counts, torch.tensor(7))
    two.load_state_dict(weights, strict=True)
    assert torch.equal(one.layer4[1].conv2.weight, two.layer4[1].conv2.weight)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        two.load_state_dict(weights | {"layer1.0.bn1.batches": torch.tensor(7)}, strict=True)


@pytest.mark.parametrize(
    ("size", "depth", "stem", "local", "shape", "pooled"),
    [
        (224, 50, "imagenet", "layer3", (1024, 14, 14), 2048),
        (224, 18, "imagenet", "layer2", (128, 28, 28), 512),
        (32, 18, "cifar", "layer3", (256, 8, 8), 512),
        (32, 34, "cifar", "layer1", (64, 32, 32), 512),
        (33, 50, "cifar", "layer4", (2048, 5, 5), 2048),
        (97, 18, "imagenet", "layer3", (256, 7, 7), 512),
    ],
)
def test_the_local_map_is_the_named_layers(size, depth, stem, local, shape, pooled):
    with torch.device("meta"):
        network = ResNet(size=size, depth=depth, stem=stem, width=64, local=local, y=64, group=2)
        features = network(torch.empty(2, 3, size, size))
        tail, width = network.tail()
        assert tail(features["local"]).shape == (2, pooled)
    assert features["local"].shape[1:] == shape
    assert (network.local_channels, network.local_side) == shape[:2]
    assert (width, network.widths) == (pooled, {"pooled": pooled, "y": 64})


def written_out(weights: dict, x: torch.Tensor, depth: int, stem: str) -> torch.Tensor:
    """Pooled features from the weights by name, in evaluation: He et al., with the stride in the 3x3."""

    def norm(x, at):
        parts = (weights[f"{at}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        mean, var, weight, bias = (part[:, None, None] for part in parts)
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def layer(x, at, number, stride, padding):
        x = F.conv2d(x, weights[f"{at}conv{number}.weight"], stride=stride, padding=padding)
        return norm(x, f"{at}bn{number}")

    x = layer(x, "", 1, *((2, 3) if stem == "imagenet" else (1, 1))).relu()
    if stem == "imagenet":
        x = F.max_pool2d(x, 3, 2, 1)
    for number, blocks in enumerate(BLOCKS[depth], 1):
        for block in range(blocks):
            at, stride = f"layer{number}.{block}.", 2 if number > 1 and block == 0 else 1
            if depth >= 50:
                out = layer(layer(x, at, 1, 1, 0).relu(), at, 2, stride, 1).relu()
                out = layer(out, at, 3, 1, 0)
            else:
                out = layer(layer(x, at, 1, stride, 1).relu(), at, 2, 1, 1)
            if f"{at}downsample.0.weight" in weights:
                x = norm(F.conv2d(x, weights[f"{at}downsample.0.weight"], stride=stride), f"{at}downsample.1")
            x = (out + x).relu()
    return x.mean((2, 3))


@pytest.mark.parametrize(
    ("depth", "stem"), [(18, "cifar"), (34, "imagenet"), (50, "imagenet"), (50, "cifar")]
)
def test_the_network_computes_what_its_names_say(depth, stem):
    torch.manual_seed(0)
    network = ResNet(depth=depth, **SMALL | {"stem": stem}).double().eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.dim() == 1:
                value.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else value.normal_()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    wanted = written_out(network.state_dict(), images, depth, stem)
    features = network(images)
    assert torch.allclose(features["pooled"], wanted, rtol=1e-10)
    assert torch.allclose(features["y"], network.y(wanted), rtol=1e-9)


def test_convolutions_start_kaiming_normal_over_the_fan_out():
    torch.manual_seed(0)
    network = ResNet(depth=50, **SMALL | {"width": 16})
    for name, weight in [*network.named_parameters(), *network.tail()[0].named_parameters()]:
        if weight.dim() == 4 and weight.numel() > 2000:
            wanted = (2 / (weight.shape[0] * weight.shape[2] * weight.shape[3])) ** 0.5
            assert weight.std().item() == pytest.approx(wanted, rel=0.1), name


@pytest.mark.parametrize(("depth", "last"), [(18, "bn2"), (50, "bn3")])
def test_zero_init_makes_every_block_its_shortcut(depth, last):
    network = ResNet(depth=depth, **SMALL, zero_init_residual=True)
    for name, weight in network.named_parameters():
        if "bn" in name and name.endswith("weight"):
            assert (weight == (0 if last in name else 1)).all(), name
    block, x = network.layer1[1], torch.rand(2, network.layer1[0].conv1.in_channels, 8, 8)
    x = network.layer1[0](x).detach()
    assert torch.equal(block(x), x.relu())
    assert (ResNet(depth=depth, **SMALL).layer1[1].get_submodule(last).weight == 1).all()


# ---- a map of details beside y ----------------------------------------------------------------------

DECODER = {"width": 64, "cell": "residual", "tower": 3, "expansion": 4, "doublings": 0, "cells": 1}
QUARTER = {"size": 32, "depth": 18, "stem": "cifar", "width": 16, "local": "layer3", "y": None, "group": 2}


def with_w(halvings: int = 1, decoder: dict | None = None, **options) -> ResNet:
    details = {"channels": 3, "halvings": halvings, "decoder": DECODER | (decoder or {})}
    return ResNet(**QUARTER | options, w=details)


def test_w_leaves_the_weights_of_the_trunk_and_its_y_alone():
    torch.manual_seed(0)
    plain = ResNet(**QUARTER)
    torch.manual_seed(0)
    both = with_w()
    names = list(plain.state_dict())
    assert [*both.state_dict()][: len(names)] == names
    assert all(torch.equal(plain.state_dict()[name], both.state_dict()[name]) for name in names)
    assert all(name.startswith("to_map.") for name in [*both.state_dict()][len(names) :])
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain(images)["y"], both(images)["y"])


def test_the_small_recipe_s_latent_has_896_numbers():
    network = with_w()
    assert network.widths == {"z": 896, "w": 768, "y": 128}
    assert network.maps == {"w": (3, 16, 16)}
    assert with_w(width=64).widths == {"z": 1280, "w": 768, "y": 512}
    assert with_w(y=64).widths == {"pooled": 128, "z": 832, "w": 768, "y": 64}


def test_w_is_of_the_first_stage_alone():
    network = with_w().double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = network(images)
    with torch.no_grad():
        for stage in (network.layer2, network.layer3, network.layer4):
            for parameter in stage.parameters():
                parameter.add_(0.1)
    after = network(images)
    assert torch.equal(before["w"], after["w"])
    assert not torch.equal(before["y"], after["y"])
    x = F.relu(network.bn1(network.conv1(images)))
    half, norm, relu, last = network.to_map
    assert (half.kernel_size, half.stride, last.kernel_size) == ((4, 4), (2, 2), (3, 3))
    assert torch.equal(last(relu(norm(half(network.layer1(x))))).flatten(1), after["w"])


@pytest.mark.parametrize(
    ("size", "stem", "halvings", "doublings", "side"),
    [
        (32, "cifar", 1, 0, 16),
        (32, "cifar", 1, 1, 16),
        (48, "cifar", 2, 1, 12),
        (128, "imagenet", 1, 2, 16),
        (64, "imagenet", 1, 3, 8),
    ],
)
def test_the_decoder_reaches_the_side_of_the_image(size, stem, halvings, doublings, side):
    network = with_w(halvings, {"doublings": doublings}, size=size, stem=stem)
    images = torch.randn(2, 3, size, size)
    features = network(images)
    assert network.maps["w"] == (3, side, side)
    assert network.decoder()(features["y"], features["w"]).shape == images.shape


def test_the_small_decoder_is_three_blocks_and_y_a_bias():
    torch.manual_seed(0)
    decoder = with_w().decoder().double()
    assert [type(layer) for layer in decoder.layers][:3] == [ResidualCell] * 3
    assert sum(p.numel() for p in decoder.parameters()) == 1_792 + 8_256 + 3 * 74_820 + 6_924
    y, w = torch.randn(2, 128, dtype=torch.float64), torch.randn(2, 768, dtype=torch.float64)
    x = decoder.from_map(w.unflatten(1, (3, 16, 16))) + decoder.from_vector(y)[:, :, None, None]
    assert torch.equal(decoder(y, w), (1 + F.pixel_shuffle(decoder.layers(x), 2)) / 2)
    inverted = with_w(decoder={"cell": "inverted"}).decoder()
    assert [type(layer) for layer in inverted.layers][:3] == [InvertedCell] * 3


@pytest.mark.parametrize(
    ("halvings", "doublings", "options", "message"),
    [
        (
            1,
            0,
            {"size": 33},
            "size=33: a place of w is a square of 2 x 2 pixels .* a multiple of 2 is needed",
        ),
        (1, 0, {"size": 36, "stem": "imagenet"}, "size=36: .* of 8 x 8 pixels .* a multiple of 8 is needed"),
        (1, 2, {}, "w.decoder.doublings=2: so many double a place of w beyond its 2 x 2 pixels"),
        (3, 2, {"decoder": {"width": 2}}, "w.decoder.doublings=2: .* w.decoder.width=2 to a fraction"),
    ],
)
def test_sizes_of_w_that_do_not_fit_are_refused(halvings, doublings, options, message):
    decoder = options.pop("decoder", {}) | {"doublings": doublings}
    with pytest.raises(ValueError, match=f"^{message}"):
        with_w(halvings, decoder, **options)
