"""Online figures are computed where the encoder is: on a GPU not by the processor, which feeds it."""

from types import SimpleNamespace

import pytest
import torch

from trainer.evaluation import health, knn

NOWHERE = torch.device("meta")  # a device that is not the CPU on any machine


@pytest.fixture
def context():
    features = {"y": torch.randn(6, 4), "mirrored": torch.randn(6, 4)}
    labels = torch.tensor([0, 1, -1, 0, 1, 1])
    return SimpleNamespace(
        device=NOWHERE,
        test="test",
        labelled="train",
        options=SimpleNamespace(knn=2),
        sampled=lambda reader, mirrored=False: (features, labels),
    )


def test_health_is_computed_on_the_device(context, monkeypatch):
    monkeypatch.setattr(health, "health", lambda y, mirrored: {"devices": {y.device, mirrored.device}})
    assert health.Health().run(context) == {"devices": {NOWHERE}}


def test_neighbours_of_labelled_images_are_sought_on_the_device(context, monkeypatch):
    monkeypatch.setattr(knn, "knn_accuracy", lambda *tensors: [(t.device, len(t)) for t in tensors[:4]])
    assert knn.Knn().run(context)["knn/y/online"] == [(NOWHERE, 5)] * 4


@pytest.mark.parametrize("evaluator", [health.Health(), knn.Knn()])
def test_ranks_without_rows_have_no_figures(context, evaluator):
    context.sampled = lambda reader, mirrored=False: None
    assert evaluator.run(context) == {}
