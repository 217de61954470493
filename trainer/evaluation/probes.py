"""Probes: how well a small classifier reads the class from frozen features. Here those fitted by L-BFGS.

The arguments of a probe are cached features, float32 or float64 tensors [N, d] on any one device, and int64
labels [N] in [0, classes); it returns the accuracy on the test features, in [0, 1]. Features are standardised
by the mean and standard deviation of the training features. Results are functions of the arguments alone:
torch's global random state is neither read nor moved.

Every probe raises UserError for an empty split or a feature that is not finite (an encoder that diverged);
ValueError for arguments of the wrong shape or type, or labels out of range.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from data_pipelines.common.errors import UserError
from trainer.recipe.evaluation import FewShot, LinearProbe

ROWS = 1024  # rows of features at work at a time: no step makes a second copy of the features
PASS = 4096  # the same where nothing of their size is made: fewer, longer products
FEW_SHOT_L2 = 0.1  # with 5 shots the best for raw pixels of digits, and near the best for the encoders tried
FEW_SHOT_STREAM = 0x66657773686F7473  # second half of the Philox key: no other draw of a run uses it


def linear_probe(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, classes: int, options: LinearProbe
) -> float:
    """Multinomial logistic regression; minimises mean cross-entropy + l2/2 · ||W||² (the bias is free).

    With l2 = 1/(C·N) this is scikit-learn's LogisticRegression(C) on standardised features.
    """
    check(train_x, train_y, test_x, test_y, classes)
    mean, scale = statistics(train_x)
    weight, bias = _fit_softmax(train_x, train_y, classes, mean, scale, options.l2, options.iterations)
    return _accuracy(lambda x: functional.linear(x, weight, bias), test_x, test_y)


def few_shot_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    classes: int,
    linear: LinearProbe,
    few: FewShot,
    seed: int,
) -> float:
    """The mean accuracy, over `few.draws` fixed draws, of linear probes on `few.shots` images a class.

    A draw is a function of (seed, draw, class, images of that class) alone, so that every encoder and control
    is judged on the same images. Features are standardised by all training features: that reads no label, and
    was better for pixels (by half a point) than the statistics of the few. `linear` sets the iterations; its
    l2 suits a whole training set, so FEW_SHOT_L2 replaces it.

    Raises:
        UserError: a class has fewer than `few.shots` training images; one that neither set has is no class.
    """
    check(train_x, train_y, test_x, test_y, classes)
    mean, scale = statistics(train_x)
    labels = train_y.cpu()
    members = [torch.nonzero(labels == label).flatten() for label in range(classes)]
    for label, images in enumerate(members):
        if len(images) < few.shots and (len(images) or (test_y == label).any()):
            raise UserError(
                f"evaluate.few_shot.shots={few.shots}, but class {label} has only {len(images)} training "
                "images; ask for fewer shots, or leave this probe out with evaluate.few_shot=null"
            )
    accuracies = []
    for draw in range(few.draws):
        picks = [_pick(images, few.shots, seed, draw, label) for label, images in enumerate(members)]
        chosen = torch.cat(picks).to(train_x.device)
        x, y = train_x[chosen], train_y[chosen]
        weight, bias = _fit_softmax(x, y, classes, mean, scale, FEW_SHOT_L2, linear.iterations)
        accuracies.append(_accuracy(partial(functional.linear, weight=weight, bias=bias), test_x, test_y))
    return sum(accuracies) / len(accuracies)


def check(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, classes: int) -> None:
    """Checks the arguments of a probe; raises as the module says."""
    for split, x, y in (("training", train_x, train_y), ("test", test_x, test_y)):
        if x.ndim != 2 or x.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{split} features must be float32 or float64 [N, d], got {x.dtype} {list(x.shape)}"
            )
        if y.dtype != torch.int64 or y.shape != x.shape[:1]:
            raise ValueError(f"{split} labels must be int64 [{len(x)}], got {y.dtype} {list(y.shape)}")
        if x.numel() == 0:
            raise UserError(
                f"the {split} split has no features to probe (shape {list(x.shape)}); use a larger split"
            )
        if not all(bound.isfinite() for bound in x.aminmax()):  # a NaN is both bounds
            raise UserError(
                f"the {split} features hold NaN or infinity: the encoder diverged; lower optimizer.lr"
            )
        if y.min() < 0 or y.max() >= classes:
            raise ValueError(f"{split} labels lie in [{y.min()}, {y.max()}], expected [0, {classes - 1}]")
    if train_x.shape[1] != test_x.shape[1] or train_x.dtype != test_x.dtype:
        raise ValueError("training and test features differ in width or type")


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, 1 / standard deviation) of each feature, [d]; a constant feature holds nothing and gets 0."""
    mean = sum(rows.sum(0, dtype=torch.float64) for rows in x.split(ROWS)) / len(x)
    square = sum((rows - mean).square_().sum(0) for rows in x.split(ROWS)) / len(x)
    std = square.sqrt()
    constant = std <= 1e-6 * mean.abs() + 1e-30  # what is left of a constant is rounding
    return mean.to(x.dtype), torch.where(constant, 0.0, 1 / std).to(x.dtype)


@torch.inference_mode(False)
def _fit_softmax(
    x: Tensor, y: Tensor, classes: int, mean: Tensor, scale: Tensor, l2: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """Softmax regression on standardised features, as weight [classes, d], bias [classes] on raw ones.

    W·((x - mean)·scale) = (W·scale)·x - (W·scale)·mean: standardising the weights instead of the features
    needs no copy of them. An evaluation passes over the features once, for loss and gradient together.
    L-BFGS works in float64; only the products with the features are of their own type.
    """
    mean, scale = mean.double(), scale.double()
    solution = torch.zeros(classes, x.shape[1] + 1, dtype=torch.float64, device=x.device)  # W, then the bias
    gradient = solution.grad = torch.zeros_like(solution)
    solution.requires_grad_()

    def for_raw_features() -> tuple[Tensor, Tensor]:
        weight = solution[:, :-1] * scale
        return weight.to(x.dtype), (solution[:, -1] - weight @ mean).to(x.dtype)

    @torch.no_grad()
    def loss_and_gradient() -> Tensor:
        weight, bias = for_raw_features()
        loss = 0.5 * l2 * solution[:, :-1].square().sum()
        slope = torch.zeros_like(solution)  # of the summed cross-entropy in (weight, bias)
        for rows, labels in zip(x.split(PASS), y.split(PASS), strict=True):
            log_p = functional.linear(rows, weight, bias).log_softmax(1)
            loss -= log_p.gather(1, labels.unsqueeze(1)).sum(dtype=torch.float64) / len(x)
            error = log_p.exp_().sub_(functional.one_hot(labels, classes))
            slope[:, :-1] += error.T @ rows
            slope[:, -1] += error.sum(0, dtype=torch.float64)
        slope[:, :-1] -= slope[:, -1:] * mean
        gradient[:, :-1] = slope[:, :-1] * scale / len(x) + l2 * solution[:, :-1]
        gradient[:, -1] = slope[:, -1] / len(x)
        return loss

    optimizer = torch.optim.LBFGS(
        [solution], max_iter=iterations, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )
    optimizer.step(loss_and_gradient)
    weight, bias = for_raw_features()
    return weight.detach(), bias.detach()


def _pick(images: Tensor, shots: int, seed: int, draw: int, label: int) -> Tensor:
    """`shots` of a class's images [n]: those with the smallest of n counter-based random numbers."""
    key = np.array([seed, FEW_SHOT_STREAM], dtype=np.uint64)
    counter = np.array([0, label, draw, 0], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=counter).random_raw(len(images))
    return images[torch.from_numpy(np.argsort(bits, kind="stable")[:shots].copy())]


def _accuracy(logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    right = [
        (logits(rows).argmax(1) == labels).sum()
        for rows, labels in zip(x.split(ROWS), y.split(ROWS), strict=True)
    ]
    return int(sum(right)) / len(x)
