"""kNN against a double loop in plain Python."""

import math
from types import SimpleNamespace

import pytest
import torch

from data_pipelines.common.errors import UserError
from trainer.evaluation import knn
from trainer.evaluation.knn import Knn, knn_accuracy, nearest
from trainer.recipe.evaluation import Evaluate


@pytest.fixture
def clusters():
    """Three overlapping clusters: 90 training and 41 test points of 5 features."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 5, generator=generator)
    y = torch.arange(131) % 3
    x = centres[y] + 1.2 * torch.randn(131, 5, generator=generator)
    return x[:90], y[:90], x[90:], y[90:]


def ranking(train_x, query):
    """[(cosine, index)] of every training point, nearest first."""
    cosines = []
    for index, point in enumerate(train_x.tolist()):
        dot = sum(a * b for a, b in zip(point, query, strict=True))
        cosines.append((dot / math.hypot(*point) / math.hypot(*query), index))
    return sorted(cosines, reverse=True)


def slow_accuracy(train_x, train_y, test_x, test_y, k):
    right = 0
    for query, label in zip(test_x.tolist(), test_y.tolist(), strict=True):
        votes = [0.0, 0.0, 0.0]
        for cosine, index in ranking(train_x, query)[:k]:
            votes[train_y[index]] += math.exp(cosine / 0.1)
        right += votes.index(max(votes)) == label
    return right / len(test_y)


@pytest.mark.parametrize("k", [1, 7, 90, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_accuracy_equals_a_double_loop(clusters, k, dtype, monkeypatch):
    train_x, train_y, test_x, test_y = clusters
    slow = slow_accuracy(train_x, train_y, test_x, test_y, k)
    assert 0.4 < slow < 1
    assert knn_accuracy(train_x.to(dtype), train_y, test_x.to(dtype), test_y, k) == slow
    monkeypatch.setattr(knn, "SIMILARITIES", 400)  # slices of 4 queries, the last one shorter
    assert knn_accuracy(train_x.to(dtype), train_y, test_x.to(dtype), test_y, k) == slow


def test_near_neighbours_weigh_more_than_many_far_ones():
    train_x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.1, 1.0]])
    train_y = torch.tensor([0, 1, 1, 1])
    assert knn_accuracy(train_x, train_y, torch.tensor([[9.0, 1.0]]), torch.tensor([0]), 4) == 1.0


def test_nearest_equals_a_double_loop(clusters, monkeypatch):
    train_x, _, test_x, _ = clusters
    expected = [[index for _, index in ranking(train_x, query)[:6]] for query in test_x.tolist()]
    assert nearest(train_x, test_x, 6).tolist() == expected
    monkeypatch.setattr(knn, "SIMILARITIES", 1)  # less than a query's: one at a time
    assert nearest(train_x, test_x, 6).tolist() == expected
    assert nearest(train_x, test_x, 1000).shape == (41, 90)


def test_a_zero_vector_is_near_nothing():
    train_x = torch.tensor([[0.0, 0.0], [1.0, 0.2], [-1.0, 0.0]])
    assert nearest(train_x, torch.tensor([[1.0, 0.0]]), 3).tolist() == [[1, 0, 2]]


def test_features_are_left_as_they_were(clusters):
    train_x, train_y, test_x, test_y = clusters
    kept = train_x.clone(), test_x.clone()
    knn_accuracy(train_x, train_y, test_x, test_y, 5)
    assert torch.equal(train_x, kept[0])
    assert torch.equal(test_x, kept[1])


def test_bad_features_are_refused(clusters):
    train_x, train_y, test_x, test_y = clusters
    with pytest.raises(UserError, match="the test split has no features"):
        knn_accuracy(train_x, train_y, test_x[:0], test_y[:0], 5)
    with pytest.raises(UserError, match="the training split has no features"):
        nearest(train_x[:0], test_x, 5)
    test_x = test_x.clone()  # the fixture's is other tests' too
    test_x[3, 2] = float("nan")
    with pytest.raises(UserError, match="the test features hold NaN or infinity"):
        knn_accuracy(train_x, train_y, test_x, test_y, 5)


def test_the_projection_head_has_a_knn_of_its_own_during_pretraining(clusters):
    train_x, train_y, test_x, test_y = clusters
    options = Evaluate(knn=5)
    for names in (("y",), ("y", "head")):
        # A head that keeps nothing but one number: another accuracy.
        train, test = (
            ({name: x if name == "y" else x[:, :1].abs() for name in names}, y)
            for x, y in ((train_x, train_y), (test_x, test_y))
        )
        context = SimpleNamespace(
            sampled=lambda split: split,
            labelled=train,
            test=test,
            classes=("a", "b", "c"),
            options=options,
            device=torch.device("cpu"),
        )
        figures = Knn().run(context)
        assert list(figures) == [f"knn/{name}/online" for name in names]
        assert figures["knn/y/online"] == knn_accuracy(train_x, train_y, test_x, test_y, 5)
    assert figures["knn/head/online"] < figures["knn/y/online"]


def test_classes_without_an_image_cost_no_votes():
    """One stray label makes a million classes, of which a vote needs no more than there are images."""
    images = torch.nn.functional.one_hot(torch.arange(4)).double().repeat(2, 1)
    labels = torch.tensor([5, 10**12, 3, 7]).repeat(2)
    assert knn_accuracy(images, labels, images, labels, 1) == 1.0
    assert knn_accuracy(images, labels, images, labels.roll(1), 1) == 0.0
