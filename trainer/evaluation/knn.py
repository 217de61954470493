"""Nearest neighbours by cosine similarity, the cheap monitor of a representation."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from data_pipelines.common.errors import UserError
from trainer.evaluation.context import EvaluationContext, Evaluator

TEMPERATURE = 0.1
KNN_FEATURES = ("y", "head")  # in this order; `head`: the output of a projection head
SIMILARITIES = 2**24  # in memory at a time: 64 MiB in float32


class Knn(Evaluator):
    """The accuracies on y, and on a projection head, during pretraining, of those images with a label."""

    name = "knn/y/online"

    def wanted(self, context: EvaluationContext) -> bool:
        return bool(context.classes)

    def run(self, context: EvaluationContext) -> dict[str, float]:
        test, train = context.sampled(context.test), context.sampled(context.labelled)
        if train is None or test is None:
            return {}
        k, figures = context.options.knn, {}
        for name in (name for name in KNN_FEATURES if name in train[0]):
            train_x, train_y = _labelled_rows(train[0][name], train[1], context.device)
            test_x, test_y = _labelled_rows(test[0][name], test[1], context.device)
            if len(train_y) and len(test_y):
                accuracy = knn_accuracy(train_x, train_y, test_x, test_y, k)
                figures[f"knn/{name}/online"] = accuracy
        return figures


def _labelled_rows(rows: Tensor, labels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Those rows [n, d] and labels [n] that have a label, on the device."""
    return rows[labels >= 0].to(device), labels[labels >= 0].to(device)


def knn_accuracy(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, k: int) -> float:
    """Accuracy in [0, 1] of a vote of the k nearest training images, each with weight exp(cosine / 0.1).

    Features are float32 or float64 [N, d], labels int64 [N]; k beyond the training set is the whole of it.
    Source: the CIFAR demo of MoCo (k = 200, temperature 0.1), after Wu et al. 2018 (arXiv 1805.01978).

    Raises:
        UserError: an empty split, or a feature that is not finite.
    """
    right = 0
    known, number = train_y.unique(return_inverse=True)  # no votes for the many classes without an image
    for start, (cosine, index) in _closest(train_x, test_x, k):
        votes = torch.zeros(len(index), len(known), dtype=torch.float64, device=index.device)
        votes.scatter_add_(1, number[index], (cosine.double() / TEMPERATURE).exp())
        right += int((known[votes.argmax(1)] == test_y[start : start + len(index)]).sum())
    return right / len(test_x)


def nearest(train_x: Tensor, query_x: Tensor, k: int) -> Tensor:
    """Indices int64 [Q, k] of each query's k nearest training images by cosine, nearest first.

    Raises:
        UserError: an empty split, or a feature that is not finite.
    """
    return torch.cat([index for _, (_, index) in _closest(train_x, query_x, k)])


def _closest(train_x: Tensor, query_x: Tensor, k: int) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """(first row, (cosines, indices) [q, k]) for slices of the queries, small enough to bound the memory."""
    for split, x in (("training", train_x), ("test", query_x)):
        if x.numel() == 0:
            raise UserError(
                f"the {split} split has no features for kNN (shape {list(x.shape)}); use a larger split"
            )
        if not all(bound.isfinite() for bound in x.aminmax()):  # a NaN is both bounds
            raise UserError(
                f"the {split} features hold NaN or infinity: the encoder diverged; lower optimizer.lr"
            )
    # Lengths divide the similarities, not the features: no copy of those. A zero vector has cosine 0.
    length = torch.linalg.vector_norm(train_x, dim=1).clamp_min(torch.finfo(train_x.dtype).tiny)
    rows = max(1, SIMILARITIES // len(train_x))
    for start in range(0, len(query_x), rows):
        queries = functional.normalize(query_x[start : start + rows], dim=1)
        yield start, (queries @ train_x.T).div_(length).topk(min(k, len(train_x)), dim=1)
