"""What holds for every kind of encoder: the shapes it tells, groups, layouts, precision, export, recipes."""

import json
import re
from contextlib import suppress

import pytest
import torch
from torch import nn

from data_pipelines.common.errors import UserError
from trainer.exports.encoder import export, load_encoder
from trainer.networks.batch_norm import GroupBatchNorm, recalibrate, update_running_stats
from trainer.networks.build import build_encoder
from trainer.recipe.loading import load
from trainer.training.build import build_objective

SIX = ["encoder.channels=[4, 6, 8, 8, 6]", "encoder.fc=10", "encoder.y=5"]
NVAE = [
    "encoder.width=4",
    "encoder.cells=1",
    "encoder.tower=1",
    "encoder.decoder_tower=1",
    "encoder.latent=2",
]
TINY = {
    "dim": ["data.size=16", "encoder.channels=[4, 8]", "encoder.fc=10", "encoder.y=5"],
    "dim_alexnet": ["data.size=16", *SIX],
    "folded_alexnet": ["data.size=32", *SIX],
    "folded_resnet": ["data.size=16", "encoder.depth=19", "encoder.width=2", "encoder.fc=10", "encoder.y=5"],
    "resnet": ["data.size=16", "encoder.depth=18", "encoder.stem=cifar", "encoder.width=2", "encoder.y=5"],
    "resnet_w": [
        *("data.size=16", "encoder.depth=18", "encoder.stem=cifar", "encoder.width=2", "encoder.y=5"),
        "encoder.w={channels: 2, decoder: {width: 8, tower: 1, expansion: 2}}",
    ],
    "nvae": ["data.size=16", *NVAE, "encoder.layout=map"],
    "nvae_pooled": ["data.size=16", *NVAE, "encoder.layout=pooled"],
    "nvae_pooled_y": ["data.size=16", *NVAE, "encoder.layout=pooled", "encoder.y=5"],
}
DECODING = [kind for kind in TINY if kind.startswith("nvae") or kind.endswith("_w")]
KINDS = ("dim", "dim_alexnet", "folded_alexnet", "folded_resnet", "resnet", "nvae")
ALL = pytest.mark.parametrize("kind", TINY)


def recipe(kind: str, *overrides: str):
    arguments = [
        "recipe=quickstart",
        f"encoder.kind={kind if kind in KINDS else kind.partition('_')[0]}",
        *TINY[kind],
        "groups.norm=3",
        *overrides,
    ]
    return load(arguments).recipe


def build(kind: str, *overrides: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_encoder(recipe(kind, *overrides).encoder_options())


def images(kind: str, n: int = 6, dtype=torch.float64) -> torch.Tensor:
    size = recipe(kind).data.size
    generator = torch.Generator().manual_seed(7)
    return (
        torch.randn(n, 3, size, size, generator=generator, dtype=dtype)
        * torch.arange(1, n + 1)[:, None, None, None]
    )


def squares(features: dict[str, torch.Tensor]) -> torch.Tensor:
    """A loss that all parameters have a part in: of every feature, w beside y."""
    return sum(rows.to(torch.float64).square().sum() for rows in features.values())


@ALL
def test_it_gives_the_shapes_that_it_tells(kind):
    encoder = build(kind).double()
    features = encoder(images(kind))
    side = encoder.local_side
    assert features.pop("local").shape == (6, encoder.local_channels, side, side)
    assert {name: value.shape for name, value in features.items()} == {
        name: (6, width) for name, width in encoder.widths.items()
    }
    assert list(features) == list(encoder.widths)
    assert list(encoder.widths)[-1] == "y"
    assert encoder.widths["y"] == (64 if kind in ("nvae", "nvae_pooled") else 5)
    for name, (channels, *places) in encoder.maps.items():
        assert encoder.widths[name] == channels * places[0] * places[1]


@pytest.mark.parametrize("kind", DECODING)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_decoder_makes_images_of_y_and_w_and_is_fresh(kind, norm):
    encoder = build(kind, f"encoder.norm={norm}").double()
    assert recipe(kind).encoder.decodes
    features, decoder = encoder(images(kind)), encoder.decoder().double()
    made = decoder(features["y"], features["w"])
    assert made.shape == images(kind).shape
    assert torch.equal(features["z"], torch.cat([features["y"], features["w"]], 1))
    made.square().sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    assert not torch.equal(next(decoder.parameters()), next(encoder.decoder().double().parameters()))


@pytest.mark.parametrize("kind", sorted(set(TINY) - set(DECODING)))
def test_the_others_have_no_decoder(kind):
    assert build(kind).decoder() is None
    assert not recipe(kind).encoder.decodes
    assert not build(kind).maps


@ALL
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_tail_takes_the_local_map_and_is_fresh(kind, norm):
    encoder = build(kind, f"encoder.norm={norm}").double()
    tail, width = encoder.tail()
    local = encoder(images(kind))["local"]
    fc = tail.double()(local)
    assert fc.shape == (6, width)
    assert not {id(p) for p in tail.parameters()} & {id(p) for p in encoder.parameters()}
    fc.square().sum().backward()
    assert all(p.grad is not None for p in tail.parameters())
    norms = [module for module in tail.modules() if isinstance(module, (GroupBatchNorm, nn.GroupNorm))]
    assert {type(module) for module in norms} == {GroupBatchNorm if norm == "batch" else nn.GroupNorm}


@ALL
def test_two_groups_in_a_batch_are_two_batches(kind):
    """Forward, gradients, and the statistics that a commit leaves."""
    together, apart = (build(kind).double() for _ in range(2))
    batch = images(kind)
    ones = together(batch)
    twos = [apart(part) for part in batch.split(3)]
    for name, value in ones.items():
        assert torch.allclose(value, torch.cat([two[name] for two in twos]), rtol=0, atol=1e-10)
    squares(ones).backward()
    sum(squares(two) for two in twos).backward()
    update_running_stats(together)
    update_running_stats(apart)
    for one, two in zip(together.parameters(), apart.parameters(), strict=True):
        assert torch.allclose(one.grad, two.grad, rtol=1e-8, atol=1e-10)
    for one, two in zip(together.buffers(), apart.buffers(), strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-12)
    batch[3:] += 1
    changed = together(batch)
    assert torch.equal(changed["y"][:3], ones["y"][:3])
    assert not torch.allclose(changed["y"][3:], ones["y"][3:])


@ALL
def test_group_norm_knows_no_other_image(kind):
    encoder = build(kind, "encoder.norm=group").double()
    assert not [module for module in encoder.modules() if isinstance(module, GroupBatchNorm)]
    assert not list(encoder.buffers())
    batch = images(kind)
    together, alone = encoder(batch), encoder(batch[2:3])
    for name, value in alone.items():
        assert torch.allclose(value, together[name][2:3], rtol=0, atol=1e-10)
    assert together["y"].std(0).min() > 1e-3  # images differ: no layer is normalised to nothing


@ALL
def test_an_exported_encoder_gives_the_same_features_whatever_its_group(kind, tmp_path):
    encoder = build(kind)
    recalibrate(encoder, [images(kind, dtype=torch.float32)])
    encoder.eval().to(memory_format=torch.channels_last)
    path = tmp_path / "encoder.safetensors"
    for group in (3, 64):
        options = recipe(kind, f"groups.norm={group}").encoder_options()
        export(path, encoder.state_dict(), {"encoder": json.dumps(options)})
        loaded = load_encoder(path)
        batch = images(kind, n=5, dtype=torch.float32)
        with torch.no_grad():
            for name, value in encoder(batch).items():
                assert torch.allclose(loaded(batch)[name], value, rtol=1e-4, atol=1e-5), name


@ALL
def test_it_is_built_without_memory_with_the_same_parameters(kind):
    with torch.device("meta"):
        shadow = build(kind)
        tail, _ = shadow.tail()
    real = build(kind)
    for (name, one), (other, two) in zip(shadow.named_parameters(), real.named_parameters(), strict=True):
        assert (name, one.shape) == (other, two.shape)
    assert all(p.is_meta for p in (*shadow.parameters(), *tail.parameters()))


@ALL
def test_layouts_do_not_change_the_result_and_the_local_map_is_channels_last(kind):
    encoder, batch = build(kind).double(), images(kind)
    first = encoder(batch)
    encoder.to(memory_format=torch.channels_last)
    second = encoder(batch.to(memory_format=torch.channels_last))
    for name, value in first.items():
        assert torch.allclose(value, second[name], rtol=0, atol=1e-10)
    assert second["local"].is_contiguous(memory_format=torch.channels_last)


@ALL
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_bf16_autocast_trains_with_float32_parameters(kind, norm):
    encoder = build(kind, f"encoder.norm={norm}")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder(images(kind, dtype=torch.float32))
    squares(features).backward()
    update_running_stats(encoder)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert {value.dtype for value in encoder.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("dim", 18, "data.size=18 cannot be halved 2 times"),
        (
            "dim_alexnet",
            14,
            "data.size=14: AlexNet pools three times; at least 15 is needed",
        ),
        ("folded_alexnet", 36, "data.size=36 cannot be folded into patches of 16 pixels, 8 apart"),
        ("folded_alexnet", 24, "data.size=24: the folded AlexNet needs 3 x 3 patches"),
        ("folded_resnet", 30, "data.size=30 cannot be folded into patches of 8 pixels, 4 apart"),
        ("folded_resnet", 4, "a multiple of 4 is needed, at least 8"),
    ],
)
def test_an_image_of_the_wrong_size_is_refused_in_a_line(kind, size, message):
    with pytest.raises(UserError) as caught:
        build_objective(recipe(kind, f"data.size={size}"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["encoder.kind=resnet", "encoder.depth=20"], "encoder.depth: expected 18, 34, 50 or 101, got 20"),
        (["encoder.kind=resnet", "encoder.local=layer5"], "did you mean 'layer"),
        (["encoder.kind=resnet", "encoder.fc=3"], "encoder.fc: unknown key; it belongs to encoder.kind dim,"),
        (["encoder.kind=folded_resnet", "encoder.stem=cifar"], "it belongs to encoder.kind resnet"),
        (["encoder.kind=dim_alexnet", "encoder.channels=[4]"], "expected a list of 5 whole numbers above 0"),
        (["encoder.kind=alexnet"], "did you mean 'dim_alexnet'?"),
        (["encoder.norm=layer"], "encoder.norm: expected 'batch' or 'group', got 'layer'"),
        (
            ["encoder.kind=nvae", "encoder.y=256"],
            "encoder: y=256 is the width of a vector, and with layout=map y is half of the latent's channels",
        ),
    ],
)
def test_a_recipe_says_what_an_encoder_takes(overrides, message):
    with pytest.raises(UserError) as caught:
        load(["recipe=quickstart", *overrides])
    assert message in str(caught.value)


AUTOENCODER = ["recipe=quickstart", "objective={kind: autoencoder}"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [],
            "objective.kind=autoencoder with encoder.kind=dim, which has no decoder; expected "
            "encoder.kind=nvae, or resnet with encoder.w={channels: 3}",
        ),
        (
            ["encoder={kind: resnet}"],
            "objective.kind=autoencoder with encoder.kind=resnet, which has no decoder; give it one with "
            "encoder.w={channels: 3}, or choose encoder.kind=nvae",
        ),
        (
            ["encoder={kind: resnet, stem: cifar, w: {decoder: {doublings: 2}}}"],
            "encoder.w.decoder.doublings=2: so many double a place of w beyond its 2 x 2 pixels, or halve "
            "w.decoder.width=64 to a fraction; give fewer",
        ),
        (
            ["encoder={kind: nvae, norm: group}", "objective.decoder_noise=0.2", "groups.norm=1"],
            "groups.norm=1: decoder_noise=0.2 has the spread of a group of images for its unit, and that "
            "needs at least 2; 32 or 64 is usual, or set decoder_noise=0",
        ),
    ],
)
def test_an_objective_that_decodes_says_what_it_requires(overrides, message):
    with torch.device("meta"), pytest.raises(UserError) as refused:
        build_objective(load([*AUTOENCODER, *overrides]).recipe)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("kind", "new"), [("resnet", "w"), ("nvae", "y"), ("nvae_pooled", "y"), ("resnet_w", ""), ("dim", "")]
)
def test_an_export_names_no_argument_that_older_versions_lack(kind, new):
    """Where it has the old meaning; what was null before there was the key stays."""
    options, section = recipe(kind).encoder_options(), recipe(kind).encoder.model_dump()
    assert options == {key: value for key, value in section.items() if key != new} | {
        "size": recipe(kind).data.size,
        "group": 3,
    }
    assert "y" in load(["recipe=moco_cifar10"]).recipe.encoder_options()


def test_a_kind_change_drops_what_belonged_to_the_other():
    encoder = load(["recipe=quickstart", "encoder.kind=resnet"]).recipe.encoder
    assert encoder.model_dump() == {
        "kind": "resnet",
        "depth": 50,
        "stem": "imagenet",
        "width": 64,
        "local": "layer3",
        "y": 64,
        "norm": "batch",
        "zero_init_residual": False,
        "w": None,
    }


# ---- small images ------------------------------------------------------------------------------------


STRIDED = (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d)


def strided_maps(module: nn.Module) -> list[tuple[nn.Module, torch.Size]]:
    """Fills, at each call of the module, with its strided layers and the maps that they read."""
    seen = []

    def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if max(nn.modules.utils._pair(layer.stride)) > 1:
            seen.append((layer, inputs[0].shape[2:]))

    for layer in module.modules():
        if isinstance(layer, STRIDED):
            layer.register_forward_pre_hook(note)
    return seen


@pytest.mark.parametrize(
    ("kind", "words"), [*((kind, []) for kind in TINY), ("resnet", ["encoder.stem=imagenet"])]
)
def test_no_size_reaches_a_strided_layer_on_one_pixel(kind, words):
    """torch 2.13's bf16 on a CPU that has it returns memory that was never written as its gradients."""
    options, sizes = recipe(kind, *words).encoder_options(), []
    refusals: list[str] = []
    for size in range(1, 37):
        try:
            encoder = build_encoder(options | {"size": size})
        except ValueError as error:
            refusals.append(str(error))
            continue
        sizes.append(size)
        seen = strided_maps(encoder)
        local = encoder(torch.randn(3, 3, size, size))["local"]
        with suppress(ValueError):  # that the local map is too small
            tail, _ = encoder.tail()
            seen_by_tail = strided_maps(tail)
            tail(local)
            seen += seen_by_tail
        assert all(min(side) > 1 for _, side in seen), (size, seen)
    assert sizes  # some are taken
    assert refusals
    assert all(re.fullmatch(r"size=\d+\b.* (is needed|at least) ?.*", line) for line in refusals)


@pytest.mark.parametrize(("stem", "least"), [("imagenet", 17), ("cifar", 5)])
def test_the_line_names_a_size_that_works(stem, least):
    options = recipe("resnet", f"encoder.stem={stem}").encoder_options()
    for size in (1, least - 1):
        with pytest.raises(ValueError, match=f"size={size}: .* with stem={stem} at least {least} is needed"):
            build_encoder(options | {"size": size})
    encoder = build_encoder(options | {"size": least})
    with torch.autocast("cpu", torch.bfloat16):
        squares(encoder(torch.randn(6, 3, least, least))).backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
