"""The critics: parameters as published, how they start, and their scores."""

import math

import pytest
import torch

from trainer.networks.dim_encoder import DimEncoder
from trainer.networks.heads import Concat, CriticEncoder, EncodeAndDot, GlobalEncodeAndDot


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_are_those_of_the_published_critic():
    with torch.device("meta"):
        critic = EncodeAndDot(local_channels=128, y=64, units=2048, score="dot", norm="batch", group=64)
    assert count(critic.local) == 4_728_832  # 4.73 M
    assert count(critic.y) == 4_466_688  # 4.47 M


@pytest.mark.parametrize(("channels", "units"), [(6, 10), (8, 8), (12, 5)])
def test_the_shortcut_starts_as_a_noisy_copy(channels, units):
    weight = CriticEncoder(channels, units, norm="batch", group=2).shortcut.weight[:, :, 0, 0]
    same = torch.eye(units, channels, dtype=torch.bool)
    assert (weight[same] == 1).all()
    assert (weight[~same].abs() <= 0.01).all()
    assert weight[~same].std() > 0.003  # uniform over +-0.01: 0.0058


def test_the_map_is_encoded_place_by_place_and_normalised_over_the_units():
    torch.manual_seed(0)
    encoder = CriticEncoder(4, 16, norm="batch", group=3).double().eval()
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    encoded = encoder(x)
    assert encoded.shape == (3, 16, 5, 5)
    assert torch.allclose(encoded.mean(1), torch.zeros(3, 5, 5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(encoded.var(1, unbiased=False), torch.ones(3, 5, 5, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(encoder(x[:, :, 2:3, 1:2]), encoded[:, :, 2:3, 1:2], atol=1e-12)  # no neighbours
    body, shortcut = encoder.body(x), encoder.shortcut(x)
    column = (body + shortcut)[1, :, 4, 2]
    assert torch.allclose(encoded[1, :, 4, 2], encoder.norm(column), atol=1e-12)


@pytest.mark.parametrize("score", ["dot", "scaled", "tanh"])
def test_scores_are_products_of_every_y_with_every_place(score):
    torch.manual_seed(0)
    critic = EncodeAndDot(local_channels=4, y=6, units=8, score=score, norm="batch", group=3).double()
    local, y = critic(torch.randn(3, 4, 2, 2, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64))
    assert local.shape == (3, 4, 8)
    assert y.shape == (3, 8)
    scores = critic.scores(local, y)
    assert scores.shape == (3, 3, 4)
    for i in range(3):
        for j in range(3):
            for place in range(4):
                dot = sum(a * b for a, b in zip(y[i].tolist(), local[j, place].tolist(), strict=True))
                wanted = {
                    "dot": dot,
                    "scaled": dot / math.sqrt(8),
                    "tanh": 20 * math.tanh(dot / math.sqrt(8) / 20),
                }[score]
                assert scores[i, j, place].item() == pytest.approx(wanted, abs=1e-12)


def test_the_places_of_the_map_keep_their_order():
    torch.manual_seed(0)
    critic = EncodeAndDot(local_channels=4, y=6, units=8, score="dot", norm="batch", group=2).eval()
    maps = torch.randn(2, 4, 3, 3)
    local, _ = critic(maps, torch.randn(2, 6))
    assert torch.allclose(local[:, 5], critic.local(maps)[:, :, 1, 2], atol=1e-6)


def test_tanh_bounds_any_score():
    critic = EncodeAndDot(local_channels=4, y=6, units=8, score="tanh", norm="batch", group=2)
    scores = critic.scores(1e4 * torch.randn(2, 3, 8), torch.randn(2, 8))
    assert scores.abs().max() <= 20


def test_scores_are_in_float32_under_autocast():
    critic = EncodeAndDot(local_channels=4, y=6, units=64, score="dot", norm="batch", group=4)
    torch.manual_seed(0)
    maps, y = torch.randn(4, 4, 2, 2), torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        local, encoded = critic(maps, y)
        scores = critic.scores(local, encoded)
        assert torch.einsum("iu,jlu->ijl", encoded, local).dtype == torch.bfloat16  # what would happen
    assert scores.dtype == torch.float32
    exact = torch.einsum("iu,jlu->ijl", encoded.double(), local.double())
    assert torch.allclose(scores.double(), exact, rtol=1e-5, atol=1e-4)


def concatenated(critic: Concat, feature: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The score of one feature [C] and one y [d]: what was concatenated, through three layers."""
    first = torch.cat([critic.local.weight, critic.y.weight], 1) @ torch.cat([feature, y]) + critic.local.bias
    return critic.out(critic.hidden(first.relu()).relu())[0]


def test_the_concatenating_critic_scores_every_y_with_every_place():
    torch.manual_seed(0)
    critic = Concat(features=4, y=6, units=8).double()
    maps, ys = torch.randn(3, 4, 2, 2, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    scores = critic.scores(*critic(maps, ys))
    assert scores.shape == (3, 3, 4)
    for i in range(3):
        for j in range(3):
            for place in range(4):
                wanted = concatenated(critic, maps[j, :, place // 2, place % 2], ys[i])
                assert scores[i, j, place].item() == pytest.approx(wanted.item(), abs=1e-12)


def test_the_concatenating_critic_scores_whole_images():
    torch.manual_seed(0)
    critic = Concat(features=16, y=6, units=8, whole=True).double()
    maps, ys = torch.randn(3, 4, 2, 2, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    scores = critic.scores(*critic(maps, ys))
    assert scores.shape == (3, 3, 1)
    wanted = concatenated(critic, maps[2].flatten(), ys[1])
    assert scores[1, 2, 0].item() == pytest.approx(wanted.item(), abs=1e-12)


def test_the_concatenating_critics_have_the_published_sizes():
    with torch.device("meta"):
        local = Concat(features=128, y=64, units=512)
        whole = Concat(features=8192, y=64, units=512, whole=True)
    assert count(local) == 193 * 512 + 513 * 512 + 513  # 192 -> 512 -> 512 -> 1
    assert count(whole) == 8257 * 512 + 513 * 512 + 513


def test_the_global_critic_scores_every_y_with_every_image():
    torch.manual_seed(0)
    encoder = DimEncoder(size=16, channels=[3, 4], fc=5, y=6, group=3)
    critic = GlobalEncodeAndDot(*encoder.tail(), y=6, units=8, score="dot").double().eval()
    maps, ys = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    local, y = critic(maps, ys)
    assert (local.shape, y.shape) == ((3, 1, 8), (3, 8))
    scores = critic.scores(local, y)
    assert scores.shape == (3, 3, 1)
    wanted = critic.y(ys[:1])[0] @ critic.local(maps[2:])[0]
    assert scores[0, 2, 0].item() == pytest.approx(wanted.item(), abs=1e-12)
