"""The U-Net of DDPM and the MLP for vectors: sizes as published, what they read, diffusers as an oracle."""

import re

import pytest
import torch

from trainer.networks.denoising_mlp import DenoisingMlp
from trainer.networks.unet import UNet
from trainer.objectives.objective import size


def small(**changes: object) -> UNet:
    torch.manual_seed(0)
    options = {"channels": 3, "side": 8, "width": 32, "multipliers": (1, 2), "attention": (8,)} | changes
    return UNet(**options).double().eval()


@pytest.mark.parametrize(("channels", "side", "parameters"), [(10, 16, 34_775_562), (3, 32, 35_746_307)])
def test_parameters_are_those_of_ddim_and_of_d2cs_latents(channels, side, parameters):
    with torch.device("meta"):
        assert size(UNet(channels, side)) == parameters


def test_every_parameter_is_read():
    network = small(condition=5)
    out = network(torch.randn(2, 3, 8, 8).double(), torch.tensor([3.0, 700.0]), torch.randn(2, 5).double())
    assert out.shape == (2, 3, 8, 8)
    out.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("kind", ["unet", "mlp"])
def test_time_and_condition_change_the_prediction_of_their_sample_alone(kind):
    torch.manual_seed(0)
    network = small(condition=5) if kind == "unet" else DenoisingMlp(24, 32, 2, condition=5).double()
    for layer in network.modules():  # the MLP begins with zeros
        if isinstance(layer, torch.nn.Linear) and not layer.weight.any():
            torch.nn.init.normal_(layer.weight, std=0.1)
    x = torch.randn(3, 3, 8, 8).double() if kind == "unet" else torch.randn(3, 24).double()
    y, t = torch.randn(3, 5).double(), torch.tensor([1.0, 2.0, 3.0])
    plain = network(x, t)
    assert torch.equal(network(x, t, y, torch.zeros(3, dtype=torch.bool)), plain)
    partly = network(x, t, y, torch.tensor([False, True, False]))
    assert [torch.allclose(partly[i], plain[i], atol=1e-12) for i in range(3)] == [True, False, True]
    later = network(x, t + torch.tensor([0, 0, 400.0]))
    assert [torch.allclose(later[i], plain[i], atol=1e-12) for i in range(3)] == [True, True, False]


def test_the_mlp_begins_as_the_published_one_with_a_prediction_of_zero():
    network = DenoisingMlp(24)
    assert not network(torch.randn(2, 24), torch.tensor([1.0, 2.0])).any()
    assert len(network.layers) == 12
    assert network.first.out_features == 1536


def test_a_side_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="multipliers: 4 levels halve a side 3 times; 12 cannot be"):
        UNet(3, 12)


def test_inner_activations_are_what_forward_computes_behind_each_block():
    """Against the way through the network, block after block, by hand."""
    network, noisy, t = small(blocks=1), torch.randn(2, 3, 8, 8).double(), torch.tensor([3.0, 700.0])
    time = network.temb(t, None, None)
    slow, written = {}, [x := network.conv_in(noisy)]
    for i, level in enumerate(network.down):
        x = level.block[0](x, time)
        x = slow[f"down.{i}.0"] = level.attn[0](x) if i == 0 else x  # attention at 8 places a side alone
        written.append(x)
        if i == 0:
            written.append(x := level.downsample(x))
    x = slow["mid"] = network.mid.block_2(network.mid.attn_1(network.mid.block_1(x, time)), time)
    for i in (1, 0):
        for number in range(2):
            x = network.up[i].block[number](torch.cat([x, written.pop()], 1), time)
            x = slow[f"up.{i}.{number}"] = network.up[i].attn[number](x) if i == 0 else x
        x = network.up[1].upsample(x) if i else x
    assert list(network.places()) == list(slow)

    before = network(noisy, t)
    ours = network.inner(noisy, t, slow)
    assert list(ours) == ["down.0.0", "down.1.0", "mid", "up.1.0", "up.1.1", "up.0.0", "up.0.1"]
    assert all(torch.equal(ours[name], slow[name]) for name in slow)
    assert torch.equal(network(noisy, t), before)
    assert not any(module._forward_hooks for module in network.modules())


def test_inner_activations_are_read_while_they_are_made_and_of_the_names_alone():
    network, x, t = small(), torch.randn(2, 3, 8, 8).double(), torch.tensor([3.0, 700.0])
    read = network.inner(x, t, ["up.0.2", "down.1.1"], lambda map: map.mean((2, 3)))
    whole = network.inner(x, t, ["down.1.1", "up.0.2"])
    assert list(read) == ["down.1.1", "up.0.2"]
    assert all(torch.equal(read[name], whole[name].mean((2, 3))) for name in whole)
    with pytest.raises(KeyError, match=r"'up\.2\.0'"):
        network.inner(x, t, ["mid", "up.2.0"])
    assert not any(module._forward_hooks for module in network.modules())  # of `mid` neither


def test_the_published_network_has_21_blocks():
    with torch.device("meta"):
        places = list(UNet(3, 32).places())
    assert places[:2] + places[7:10] + places[-1:] == [
        "down.0.0", "down.0.1", "down.3.1", "mid", "up.3.0", "up.0.2",
    ]  # fmt: skip
    assert len(places) == 21


# ---- diffusers ---------------------------------------------------------------------------------------

TO_DIFFUSERS = [
    (r"^temb\.dense\.0", "time_embedding.linear_1"),
    (r"^temb\.dense\.1", "time_embedding.linear_2"),
    (r"^down\.(\d)\.block", r"down_blocks.\1.resnets"),
    (r"^down\.(\d)\.attn", r"down_blocks.\1.attentions"),
    (r"^down\.(\d)\.downsample", r"down_blocks.\1.downsamplers.0"),
    (r"^mid\.block_1", "mid_block.resnets.0"),
    (r"^mid\.block_2", "mid_block.resnets.1"),
    (r"^mid\.attn_1", "mid_block.attentions.0"),
    (r"^up\.(\d)\.block", r"up_blocks.\1.resnets"),
    (r"^up\.(\d)\.attn", r"up_blocks.\1.attentions"),
    (r"^up\.(\d)\.upsample", r"up_blocks.\1.upsamplers.0"),
    (r"^norm_out", "conv_norm_out"),
    (r"(attn.*|attentions.*)\.norm\.", r"\1.group_norm."),
    (r"\.([qkv])\.(weight|bias)$", r".to_\1.\2"),
    (r"\.proj_out\.", ".to_out.0."),
    (r"\.temb_proj\.", ".time_emb_proj."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
]


def renamed(name: str, levels: int) -> str:
    if up := re.match(r"up\.(\d)", name):  # diffusers counts the way up from the smallest side
        name = f"up.{levels - 1 - int(up[1])}{name[up.end() :]}"
    for pattern, replacement in TO_DIFFUSERS:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.slow
def test_diffusers_predicts_the_same_of_the_same_weights():
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers, which nothing else here needs")
    ours = small(width=128)  # whose groups are as many
    theirs = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(128, 256),
        layers_per_block=2,
        down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"),
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        attention_head_dim=None,
    )
    theirs = theirs.double().eval()
    state = {renamed(name, 2): value for name, value in ours.state_dict().items()}
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    theirs.load_state_dict({name: value.reshape(shapes[name]) for name, value in state.items()})
    x, t = torch.randn(4, 3, 8, 8).double(), torch.tensor([0.0, 17.0, 500.0, 999.0])
    with torch.no_grad():
        assert torch.allclose(ours(x, t), theirs(x, t).sample, atol=1e-5)


@pytest.mark.parametrize("width", [8, 32])
def test_a_narrow_block_hears_the_time_at_its_own_side(width):
    """A level by itself: what others hear does not help it."""
    network = small(width=width, multipliers=(1,), attention=(), condition=3)
    x, y = torch.randn(2, 3, 8, 8).double(), torch.randn(2, 3).double()
    said = network(x, torch.tensor([1.0, 1.0]))
    assert not torch.allclose(network(x, torch.tensor([900.0, 900.0])), said, rtol=1e-2)
    assert not torch.allclose(network(x, torch.tensor([1.0, 1.0]), y), said, rtol=1e-2)
