"""Distances between sets of features, against scipy and loops that are slow."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from data_pipelines.draws import permutation
from trainer.evaluation.distances import (
    Moments,
    covered,
    frechet,
    kid,
    mmd,
    nearest,
    precision_recall,
    radii,
    sliced_w2,
)


def rows(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator)
    return torch.randn(n, d, generator=generator) @ mixing + shift


# ---- Fréchet ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(500, 16), (40, 64)])  # full rank, and fewer rows than features
def test_frechet_equals_scipys_root_of_a_matrix(n, d):
    one, two = rows(n, d, 0), rows(n + 7, d, 1, shift=0.5)
    a, b = (np.cov(x.double().numpy(), rowvar=False) for x in (one, two))
    root = scipy.linalg.sqrtm(a @ b)
    apart = one.double().mean(0).numpy() - two.double().mean(0).numpy()
    expected = (apart @ apart + np.trace(a + b) - 2 * np.trace(root)).real
    assert frechet(Moments.of(one), Moments.of(two)) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_known_gaussians():
    line = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)  # variance 2
    moved = 3 * line + 5
    assert frechet(Moments.of(line), Moments.of(moved)) == pytest.approx(25 + (3 - 1) ** 2 * 2)
    assert frechet(Moments.of(moved), Moments.of(moved)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("far", [0.0, 1e6])
def test_moments_in_pieces_equal_those_of_all_rows(far):
    x = rows(1000, 8, 0).double() + far
    pieces = [Moments.of(piece) for piece in x.split([1, 300, 7, 692])]
    left = pieces[0] + pieces[1] + pieces[2] + pieces[3]
    tree = (pieces[0] + pieces[1]) + (pieces[2] + pieces[3])
    expected = torch.from_numpy(np.cov(x.numpy(), rowvar=False))
    for moments in (left, tree):
        assert moments.rows == 1000
        assert torch.allclose(moments.mean, x.mean(0), rtol=1e-12)
        assert torch.allclose(moments.covariance(), expected, rtol=1e-7, atol=1e-7)


def test_one_row_has_no_covariance():
    with pytest.raises(ValueError, match="rows=1: a covariance needs two"):
        Moments.of(rows(1, 4, 0)).covariance()


# ---- KID and sliced W2 -------------------------------------------------------------------------------


def test_mmd_equals_a_sum_over_pairs():
    x, y = rows(12, 5, 0).double(), rows(12, 5, 1, 0.3).double()

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a.tolist(), b.tolist(), strict=True)) / 5 + 1) ** 3

    within = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(12) for j in range(12) if i != j) / (
        12 * 11
    )
    across = sum(kernel(a, b) for a in x for b in y) / 144
    assert mmd(x, y) == pytest.approx(within - 2 * across, rel=1e-10)


def test_kid_is_about_zero_for_equal_laws_and_takes_its_subsets_from_the_seed():
    one, two, other = rows(400, 6, 0), rows(400, 6, 0).flip(0), rows(400, 6, 0, shift=1.0)
    value, spread = kid(one[:200], two[:200], seed=3, subsets=20, size=50)
    assert abs(value) < 3 * spread
    assert kid(one, other, 3, 20, 50)[0] > 10 * abs(value)
    assert kid(one, other, 3, 20, 50) == kid(one, other, 3, 20, 50) != kid(one, other, 4, 20, 50)
    slow = [
        mmd(
            one[permutation(400, 3, "kid one", i)[:50].copy()].double(),
            other[permutation(400, 3, "kid two", i)[:50].copy()].double(),
        )
        for i in range(20)
    ]
    assert kid(one, other, 3, 20, 50) == pytest.approx((np.mean(slow), np.std(slow)), rel=1e-12)


def test_sliced_w2_equals_a_loop_over_directions():
    one, two = rows(50, 4, 0).double(), rows(50, 4, 1, 0.5).double()
    lines = torch.randn(1000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    total = 0.0
    for line in lines:
        unit = line / math.sqrt(sum(v * v for v in line.tolist()))
        x, y = sorted((one @ unit).tolist()), sorted((two @ unit).tolist())
        total += sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / 50
    assert sliced_w2(one, two, seed=9) == pytest.approx(math.sqrt(total / 1000), rel=1e-10)


def test_sliced_w2_of_a_shift_is_its_length_over_the_root_of_the_dimensions():
    one = rows(300, 3, 0).double()
    assert sliced_w2(one, one, 0) == 0
    assert sliced_w2(one, one + 2, 0, 20_000) == pytest.approx(math.sqrt(12 / 3), rel=0.02)
    assert sliced_w2(one, one[:100], 0) > 0  # as many of the longer one, at random


# ---- neighbours --------------------------------------------------------------------------------------


def test_precision_and_recall_equal_loops_over_balls():
    real, samples = rows(60, 3, 0).double(), rows(50, 3, 1, 0.7).double()

    def ball(points, i):
        return sorted(math.dist(points[i].tolist(), p.tolist()) for p in points)[3]  # itself is first

    def share(points, centres):
        sizes = [ball(centres, i) for i in range(len(centres))]
        inside = [
            any(math.dist(p.tolist(), c.tolist()) <= r for c, r in zip(centres, sizes, strict=True))
            for p in points
        ]
        return sum(inside) / len(points)

    precision, recall = precision_recall(real, samples)
    assert precision == pytest.approx(share(samples, real))
    assert recall == pytest.approx(share(real, samples))
    assert 0 < precision < 1
    assert 0 < recall < 1


def test_chunks_change_no_neighbour(monkeypatch):
    real, samples = rows(60, 3, 0), rows(50, 3, 1, 0.7)
    whole = radii(real), covered(samples, real, radii(real)), *nearest(samples, real)
    monkeypatch.setattr("trainer.evaluation.distances.CHUNK", 7)
    parts = radii(real), covered(samples, real, radii(real)), *nearest(samples, real)
    assert torch.allclose(whole[0], parts[0], atol=1e-9)
    assert whole[1] == parts[1]
    assert torch.equal(whole[3], parts[3])


def test_the_nearest_row_of_a_copy_is_itself():
    real = rows(60, 3, 0)
    distance, number = nearest(real[[5, 17]] + 1e-7, real)
    assert number.tolist() == [5, 17]
    assert distance.max() < 1e-5
