"""Probes: how well a small classifier reads the class from frozen features. Here those with one minimum.

The arguments of a probe are cached features, float32 or float64 tensors [N, d] on any one device, and int64
labels [N] in [0, classes); it returns the accuracy on the test features, in [0, 1], and the fit. Features are
standardised by the mean and standard deviation of the training features. Results are functions of the
arguments alone: torch's global random state is neither read nor moved.

Every probe raises UserError for an empty split or a feature that is not finite (an encoder that diverged);
ValueError for arguments of the wrong shape or type, or labels out of range.
"""

import numpy as np
import torch
from torch import Tensor

from data_pipelines.common.errors import UserError
from data_pipelines.draws import permutation
from trainer.evaluation.linear_fit import LinearFit
from trainer.evaluation.softmax import fit_each, fit_softmax
from trainer.evaluation.svm import fit_svm
from trainer.recipe.evaluation import FewShot, LinearProbe, SvmProbe

ROWS = 1024  # rows of features at work at a time: no step makes a second copy of the features
FEW_SHOT_L2 = 0.1  # with 5 shots the best for raw pixels of digits, and near the best for the encoders tried
FEW_SHOT_STREAM = 0x66657773686F7473  # second half of the Philox key: no other draw of a run uses it


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    classes: int,
    options: LinearProbe,
    seed: int = 0,
) -> tuple[float, LinearFit]:
    """Multinomial logistic regression; minimises mean cross-entropy + l2/2 · ||W||² (the bias is free).

    With l2 = 1/(C·N) this is scikit-learn's LogisticRegression(C) on standardised features. The accuracy, and
    the fit, which knows whether it converged (`softmax` states the rule). Where `options.l2` leaves a choice,
    `seed` draws the tenth of the training images that makes it.

    Raises:
        UserError: there is a choice, and a single training image.
    """
    check(train_x, train_y, test_x, test_y, classes)
    scaling = statistics(train_x)
    l2 = options.l2
    if not isinstance(l2, float):
        l2 = choose_l2(train_x, train_y, classes, scaling, options, seed)
    fit = fit_softmax(train_x, train_y, classes, scaling, l2, options.iterations)
    return accuracy(fit, test_x, test_y), fit


def choose_l2(
    x: Tensor, y: Tensor, classes: int, scaling: tuple[Tensor, Tensor], options: LinearProbe, seed: int
) -> float:
    """The weight of `options.candidates` that is best on a tenth of the images when fitted to the others.

    Of equal ones the greatest. The tenth is a function of the seed and the number of images.
    """
    if len(x) < 2:
        raise UserError(
            "evaluate.linear.l2 is chosen on some of the training images, and there is one; give a number"
        )
    held_out = torch.zeros(len(x), dtype=torch.bool)
    held_out[torch.from_numpy(permutation(len(x), seed, "probe l2")[: max(1, len(x) // 10)].copy())] = True
    held_out = held_out.to(x.device)
    candidates = sorted(options.candidates, reverse=True)
    fits = fit_each(x, y, classes, scaling, candidates, options.iterations, used=~held_out)
    scores = [accuracy(fit, x[held_out], y[held_out]) for fit in fits]
    return candidates[scores.index(max(scores))]


def svm_probe(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, classes: int, options: SvmProbe
) -> tuple[float, LinearFit]:
    """Linear SVMs, one class against the rest; each minimises mean hinge loss + l2/2 · ||w||².

    The accuracy of the greatest decision value, and the fit (`svm` states when it has converged). With
    l2 = 1/(C·N) this is scikit-learn's LinearSVC(loss="hinge", C=C) on standardised features, but for its
    bias, which weighs nothing here.
    """
    check(train_x, train_y, test_x, test_y, classes)
    assert options.iterations is not None  # else SGD trains them
    fit = fit_svm(train_x, train_y, classes, statistics(train_x), options.l2, options.iterations)
    return accuracy(fit, test_x, test_y), fit


def few_shot_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    classes: int,
    linear: LinearProbe,
    few: FewShot,
    seed: int,
) -> tuple[float, list[LinearFit]]:
    """The mean accuracy, over `few.draws` fixed draws, of linear probes on `few.shots` images a class.

    A draw is a function of (seed, draw, class, images of that class) alone, so that every encoder and control
    is judged on the same images. Features are standardised by all training features: that reads no label, and
    was better for pixels (by half a point) than the statistics of the few. `linear` sets the iterations; its
    l2 suits a whole training set, so FEW_SHOT_L2 replaces it. The fits, one a draw, come with it.

    Raises:
        UserError: a class has fewer than `few.shots` training images; one that neither set has is no class.
    """
    check(train_x, train_y, test_x, test_y, classes)
    scaling = statistics(train_x)
    labels = train_y.cpu()
    members = [torch.nonzero(labels == label).flatten() for label in range(classes)]
    for label, images in enumerate(members):
        if len(images) < few.shots and (len(images) or (test_y == label).any()):
            raise UserError(
                f"evaluate.few_shot.shots={few.shots}, but class {label} has only {len(images)} training "
                "images; ask for fewer shots, or leave this probe out with evaluate.few_shot=null"
            )
    fits = []
    for draw in range(few.draws):
        picks = [_pick(images, few.shots, seed, draw, label) for label, images in enumerate(members)]
        chosen = torch.cat(picks).to(train_x.device)
        x, y = train_x[chosen], train_y[chosen]
        fits.append(fit_softmax(x, y, classes, scaling, FEW_SHOT_L2, linear.iterations, whiten=False))
    return sum(accuracy(fit, test_x, test_y) for fit in fits) / len(fits), fits


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


def _pick(images: Tensor, shots: int, seed: int, draw: int, label: int) -> Tensor:
    """`shots` of a class's images [n]: those with the smallest of n counter-based random numbers."""
    key = np.array([seed, FEW_SHOT_STREAM], dtype=np.uint64)
    counter = np.array([0, label, draw, 0], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=counter).random_raw(len(images))
    return images[torch.from_numpy(np.argsort(bits, kind="stable")[:shots].copy())]


def accuracy(fit: LinearFit, x: Tensor, y: Tensor) -> float:
    """The share in [0, 1] of images with features x [n, d] whose greatest output is that of y [n]."""
    right = [
        (fit.outputs(rows).argmax(1) == labels).sum()
        for rows, labels in zip(x.split(ROWS), y.split(ROWS), strict=True)
    ]
    return int(sum(right)) / len(x)
