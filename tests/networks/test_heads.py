"""The encode-and-dot critic: parameters as published, its start, and its scores."""

import math

import pytest
import torch

from trainer.networks.heads import CriticEncoder, EncodeAndDot


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_are_those_of_the_published_critic():
    with torch.device("meta"):
        critic = EncodeAndDot(local_channels=128, y=64, units=2048, score="dot", group=64)
    assert count(critic.local) == 4_728_832  # 4.73 M
    assert count(critic.y) == 4_466_688  # 4.47 M


@pytest.mark.parametrize(("channels", "units"), [(6, 10), (8, 8), (12, 5)])
def test_the_shortcut_starts_as_a_noisy_copy(channels, units):
    weight = CriticEncoder(channels, units, group=2).shortcut.weight[:, :, 0, 0]
    same = torch.eye(units, channels, dtype=torch.bool)
    assert (weight[same] == 1).all()
    assert (weight[~same].abs() <= 0.01).all()
    assert weight[~same].std() > 0.003  # uniform over +-0.01: 0.0058


def test_the_map_is_encoded_place_by_place_and_normalised_over_the_units():
    torch.manual_seed(0)
    encoder = CriticEncoder(4, 16, group=3).double().eval()
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    found = encoder(x)
    assert found.shape == (3, 16, 5, 5)
    assert torch.allclose(found.mean(1), torch.zeros(3, 5, 5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found.var(1, unbiased=False), torch.ones(3, 5, 5, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(encoder(x[:, :, 2:3, 1:2]), found[:, :, 2:3, 1:2], atol=1e-12)  # no neighbours
    body, shortcut = encoder.body(x), encoder.shortcut(x)
    column = (body + shortcut)[1, :, 4, 2]
    assert torch.allclose(found[1, :, 4, 2], encoder.norm(column), atol=1e-12)


@pytest.mark.parametrize("score", ["dot", "scaled", "tanh"])
def test_scores_are_products_of_every_y_with_every_place(score):
    torch.manual_seed(0)
    critic = EncodeAndDot(local_channels=4, y=6, units=8, score=score, group=3).double()
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
    critic = EncodeAndDot(local_channels=4, y=6, units=8, score="dot", group=2).eval()
    maps = torch.randn(2, 4, 3, 3)
    local, _ = critic(maps, torch.randn(2, 6))
    assert torch.allclose(local[:, 5], critic.local(maps)[:, :, 1, 2], atol=1e-6)


def test_tanh_bounds_any_score():
    critic = EncodeAndDot(local_channels=4, y=6, units=8, score="tanh", group=2)
    scores = critic.scores(1e4 * torch.randn(2, 3, 8), torch.randn(2, 8))
    assert scores.abs().max() <= 20


def test_scores_are_in_float32_under_autocast():
    critic = EncodeAndDot(local_channels=4, y=6, units=64, score="dot", group=4)
    torch.manual_seed(0)
    maps, y = torch.randn(4, 4, 2, 2), torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        local, encoded = critic(maps, y)
        scores = critic.scores(local, encoded)
        assert torch.einsum("iu,jlu->ijl", encoded, local).dtype == torch.bfloat16  # what would happen
    assert scores.dtype == torch.float32
    exact = torch.einsum("iu,jlu->ijl", encoded.double(), local.double())
    assert torch.allclose(scores.double(), exact, rtol=1e-5, atol=1e-4)
