"""Health of representations: known values, slow oracles, and what collapse looks like."""

import math

import pytest
import torch

from data_pipelines.common.errors import UserError
from trainer.evaluation import health
from trainer.evaluation.health import alignment, dead_dimensions, effective_rank, uniformity


def features(n=60, d=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.linspace(0.1, 3, d) + 5


def test_effective_rank_is_the_entropy_of_singular_values():
    x = features().double()
    centred = x - x.mean(0)
    values = [math.sqrt(v) for v in torch.linalg.eigvalsh(centred.T @ centred).tolist()]
    shares = [value / sum(values) for value in values]
    assert effective_rank(x) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_of_an_even_spread_is_its_dimension(rank):
    x = torch.zeros(16, 8)
    x[range(rank), range(rank)], x[range(8, 8 + rank), range(rank)] = 1.0, -1.0
    assert effective_rank(x + 3) == pytest.approx(rank, rel=1e-9)
    turn = torch.linalg.qr(features(8, 8))[0]
    assert effective_rank(x @ turn) == pytest.approx(rank, rel=1e-5)


def test_a_collapsed_representation_has_rank_1_whatever_its_rounding():
    generator = torch.Generator().manual_seed(0)
    point = torch.randn(16, generator=generator)
    noisy = point * (1 + 3e-8 * torch.randn(500, 16, generator=generator, dtype=torch.float64))
    for x in (point.expand(500, 16), noisy.float(), torch.zeros(500, 16)):
        assert effective_rank(x) == 1.0
        assert uniformity(x) == pytest.approx(0, abs=1e-9)
        assert dead_dimensions(x) == 1.0
    line = point * torch.linspace(1, 2, 500)[:, None]
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    assert dead_dimensions(line) == 0.0


def test_uniformity_equals_a_loop_over_pairs():
    x = features().double()
    units = [row / row.square().sum().sqrt() for row in x]
    terms = [
        math.exp(-2 * (a - b).square().sum().item()) for i, a in enumerate(units) for b in units[i + 1 :]
    ]
    assert uniformity(x) == pytest.approx(math.log(sum(terms) / len(terms)), rel=1e-12)


def test_uniformity_of_known_points():
    opposite = torch.tensor([[3.0, 0.0], [-0.5, 0.0]])
    assert uniformity(opposite) == pytest.approx(-8)  # |a - b|² = 4
    cross = torch.eye(4) * 7
    assert uniformity(cross) == pytest.approx(-4)
    sphere = torch.randn(3000, 512, generator=torch.Generator().manual_seed(0))
    assert uniformity(sphere) == pytest.approx(-4, abs=0.05)


def test_beyond_the_bound_every_second_row_is_compared(monkeypatch):
    x = features(50)
    monkeypatch.setattr(health, "PAIRED", 30)
    assert uniformity(x) == uniformity(x[::2])


def test_alignment_equals_a_loop_and_known_values():
    x, other = features().double(), features(seed=1).double()
    total = sum((a / a.norm() - b / b.norm()).square().sum().item() for a, b in zip(x, other, strict=True))
    assert alignment(x, other) == pytest.approx(total / len(x), rel=1e-12)
    assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x) == pytest.approx(4)


def test_dead_dimensions_are_counted():
    x = features(100, 8)
    assert dead_dimensions(x) == 0.0
    x[:, 0], x[:, 1] = 0.0, 0.3
    x[:, 2] = 1 + 1e-4 * x[:, 2]
    assert dead_dimensions(x) == 3 / 8


def test_all_figures_and_only_what_there_is():
    y = features()
    names = {"health/effective_rank", "health/uniformity", "health/dead_dimensions"}
    assert set(health.health(y)) == names
    figures = health.health(y, -y)
    assert set(figures) == names | {"health/alignment"}
    assert figures["health/alignment"] == pytest.approx(4)
    assert health.health(y[:1]) == {}
    bad = y.clone()
    bad[3, 2] = math.nan
    for pair in ((bad, None), (y, bad)):
        with pytest.raises(UserError, match="diverged"):
            health.health(*pair)
