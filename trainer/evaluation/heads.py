"""Probes that learn by mini-batches, all in one pass over the cached features.

A head is a classifier that begins with a matrix product of the standardised features: a softmax regression,
the paper's MLP, several SVMs. All heads see the same mini-batches, so a mini-batch is read and standardised
once and the first products of all of them are one, [batch, d] x [d, units of all heads]. They share nothing
else: a head's loss, optimizer state, learning rate and random numbers are functions of (seed, head).
Arguments, results and errors are those of `probes`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from data_pipelines.common.errors import UserError
from data_pipelines.draws import permutation, stream
from data_pipelines.pinned import on_device
from trainer.evaluation.probes import ROWS, check, statistics
from trainer.recipe.evaluation import MlpProbe, SgdProbe, SvmProbe

MOMENTUM = 0.9
Options = MlpProbe | SgdProbe | SvmProbe
Section = TypeVar("Section", MlpProbe, SgdProbe, SvmProbe)  # the options of one kind of head


@torch.inference_mode(False)  # gradients, also where the caller has switched them off
def head_probes(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    classes: int,
    wanted: Mapping[str, Options],
    seed: int,
) -> dict[str, list[float]]:
    """Test accuracies in [0, 1] of the heads `wanted`: one figure each, of SVMs one for each run.

    Heads whose mini-batches are of one size, and of equally scaled features, are trained together. Of a head
    that is tested after each of its last epochs, the figures are means over these.

    Raises:
        UserError: as `probes` says, or a head diverged, or batch-norm has fewer than 2 images.
    """
    check(train_x, train_y, test_x, test_y, classes)
    mean, scale = statistics(train_x)
    results: dict[str, list[float]] = {}
    for batch, scaled in dict.fromkeys((options.batch, options.scaled) for options in wanted.values()):
        equal = {
            name: options
            for name, options in wanted.items()
            if (options.batch, options.scaled) == (batch, scaled)
        }
        shift, factor = (mean, scale) if scaled else (torch.zeros_like(mean), torch.ones_like(scale))
        if min(batch, len(train_x)) < max(options.fewest_images for options in equal.values()):
            raise UserError("the MLP probe's batch-norm needs at least 2 training images at a time, got 1")
        heads = {name: build(options, train_x, classes, seed) for name, options in equal.items()}
        tested: dict[Head, list[list[float]]] = {head: [] for head in heads.values()}

        def test(epoch: int, tested: dict = tested, shift: Tensor = shift, factor: Tensor = factor) -> None:
            due = [h for h in tested if 0 <= h.options.epochs - 1 - epoch < h.options.averaged]
            for head, measured in zip(due, accuracies(due, test_x, test_y, shift, factor), strict=True):
                tested[head].append(measured)

        fit(list(heads.values()), train_x, train_y, shift, factor, seed, test)
        for name, head in heads.items():
            if not all(parameter.isfinite().all() for parameter in head.parameters()):
                raise UserError(f"evaluate.{name}.lr={wanted[name].lr}: the probe diverged; lower it")
            results[name] = [sum(runs) / len(runs) for runs in zip(*tested[head], strict=True)]
    return {name: results[name] for name in wanted}


def build(options: Options, x: Tensor, classes: int, seed: int) -> "Head":
    """A head for features like x [N, d], of their type and on their device."""
    kinds: dict[type, Callable[..., Head]] = {MlpProbe: Mlp, SgdProbe: Softmax, SvmProbe: Svms}
    return kinds[type(options)](x.shape[1], classes, options, seed).to(x.device, x.dtype)


def fit(
    heads: Sequence["Head"],
    x: Tensor,
    y: Tensor,
    mean: Tensor,
    scale: Tensor,
    seed: int,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Trains heads of equal mini-batches, each for its own number of epochs, on features x [N, d].

    An epoch leaves out the rest that makes no whole mini-batch; the next one has another order. After each
    `after_epoch` is called with its number, from 0 on.
    """
    heads = sorted(heads, key=lambda head: -head.options.epochs)  # those that train longest come first
    stacked = torch.cat([head.weight.detach() for head in heads])
    for head, rows in zip(heads, stacked.split([head.units for head in heads]), strict=True):
        head.weight.data = rows  # where the optimizer changes it, it changes `stacked`
        head.start()
    batch = min(heads[0].options.batch, len(x))
    steps = len(x) // batch
    for epoch in range(heads[0].options.epochs):
        active = [head for head in heads if epoch < head.options.epochs]
        widths = [head.units for head in active]
        order = on_device(permutation(len(x), seed, "probe epochs", epoch), x.device)
        for step, chosen in enumerate(order[: steps * batch].split(batch)):
            images = x.index_select(0, chosen).sub_(mean).mul_(scale)
            products = functional.linear(images, stacked[: sum(widths)]).requires_grad_()
            labels, parts = y[chosen], products.split(widths, dim=1)
            losses = [head.loss(head(part), labels) for head, part in zip(active, parts, strict=True)]
            torch.stack(losses).sum().backward()  # no loss sees another head: each gets its own gradient
            assert products.grad is not None
            gradients = (products.grad.T @ images).split(widths)
            for head, gradient in zip(active, gradients, strict=True):
                head.step(gradient, epoch + step / steps)
        after_epoch(epoch)


@torch.no_grad()
def accuracies(
    heads: Sequence["Head"], x: Tensor, y: Tensor, mean: Tensor, scale: Tensor
) -> list[list[float]]:
    """The accuracy of each head on features x [N, d] with labels y [N]; of SVMs, of each run."""
    right: list[list[Tensor]] = [[] for _ in heads]
    for rows, labels in zip(x.split(ROWS), y.split(ROWS), strict=True):
        images = (rows - mean).mul_(scale)
        for number, head in enumerate(heads):
            guesses = head.eval()(functional.linear(images, head.weight)).argmax(-1)
            head.train()
            right[number].append((guesses.view(len(labels), -1) == labels.unsqueeze(1)).sum(0))
    return [(torch.stack(counts).sum(0).double() / len(x)).tolist() for counts in right]


class Head(nn.Module, Generic[Section]):
    """A classifier on the products [n, units] of standardised features [n, d] with its `weight` [units, d].

    `forward` makes logits of the products, `loss` their mean loss; a subclass sets `weight` and both.
    """

    weight: nn.Parameter

    def __init__(self, options: Section):
        super().__init__()
        self.options: Section = options

    @property
    def units(self) -> int:
        """Columns of the head's part in the common product."""
        return len(self.weight)

    def start(self) -> None:
        """Before the first step, when `weight` lies where it will stay."""
        self.optimizer = self.make_optimizer()

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.options.lr, momentum=MOMENTUM)

    def step(self, gradient: Tensor, epochs: float) -> None:
        """Moves the parameters; `gradient` is that of `weight`, the others have theirs."""
        self.weight.grad = gradient
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr * self.rate(epochs)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def rate(self, epochs: float) -> float:
        """The share of the learning rate that holds after so many epochs: a half cosine."""
        return (1 + math.cos(math.pi * epochs / self.options.epochs)) / 2

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels)


class Softmax(Head[SgdProbe]):
    """Multinomial logistic regression. Its inputs are of unit mean square: features over the root of d."""

    def __init__(self, inputs: int, classes: int, options: SgdProbe, seed: int):
        super().__init__(options)
        self.weight = nn.Parameter(torch.zeros(classes, inputs))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.scale = inputs**-0.5

    def forward(self, products: Tensor) -> Tensor:
        """[n, classes] -> logits [n, classes]."""
        return products * self.scale + self.bias


class Svms(Head[SvmProbe]):
    """Linear SVMs, one against the rest, inputs as those of `Softmax`; they differ in initial weights."""

    def __init__(self, inputs: int, classes: int, options: SvmProbe, seed: int):
        super().__init__(options)
        self.shape = (options.runs, classes)
        starts = [
            uniform((classes, inputs), 1, generator(seed, "probe svm", run)) for run in range(options.runs)
        ]
        self.weight = nn.Parameter(torch.cat(starts))  # nn.Linear's bound 1/√d, for inputs as they are here
        self.bias = nn.Parameter(torch.zeros(self.shape))
        self.scale = inputs**-0.5

    def make_optimizer(self) -> torch.optim.Optimizer:
        decayed = {"params": [self.weight], "weight_decay": self.options.l2 * self.scale**2}
        return torch.optim.SGD([decayed, {"params": [self.bias]}], self.options.lr, momentum=MOMENTUM)

    def forward(self, products: Tensor) -> Tensor:
        """[n, runs · classes] -> decision values [n, runs, classes]."""
        return products.view(-1, *self.shape) * self.scale + self.bias

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over images of `hinge`, summed over runs and classes: nothing mixes them."""
        return hinge(logits, labels).sum() / len(logits)


def hinge(values: Tensor, labels: Tensor) -> Tensor:
    """max(0, 1 - t·v), t = 1 for an image's own class and -1 for others; [n, runs, classes], labels [n].

    Cortes and Vapnik 1995, one class against the rest as scikit-learn's LinearSVC.
    """
    labelled = functional.one_hot(labels, values.shape[-1]).unsqueeze(1)
    return (1 - (2 * labelled - 1) * values).relu()


class Mlp(Head[MlpProbe]):
    """The probe of the Deep InfoMax paper: Linear, dropout, batch-norm, ReLU, Linear; Adam."""

    def __init__(self, inputs: int, classes: int, options: MlpProbe, seed: int):
        super().__init__(options)
        self.draws = generator(seed, "probe mlp")
        starts = {}  # nn.Linear's own initialisation
        for name, rows, columns in (("first", options.units, inputs), ("last", classes, options.units)):
            starts[name] = uniform((rows, columns), columns**-0.5, self.draws)
            starts[f"{name} bias"] = uniform((rows,), columns**-0.5, self.draws)
        self.weight, self.bias = nn.Parameter(starts["first"]), nn.Parameter(starts["first bias"])
        self.norm = nn.BatchNorm1d(options.units)
        self.last, self.last_bias = nn.Parameter(starts["last"]), nn.Parameter(starts["last bias"])

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.options.lr, fused=True)

    def rate(self, epochs: float) -> float:
        """A half cosine, or a tenth after each milestone."""
        if self.options.milestones is None:
            return super().rate(epochs)
        return 0.1 ** sum(epochs >= milestone for milestone in self.options.milestones)

    def forward(self, products: Tensor) -> Tensor:
        """[n, units] -> logits [n, classes]."""
        hidden = products + self.bias
        if self.training:  # drawn on the host, so that every device drops the same
            keep = 1 - self.options.dropout
            kept = torch.empty(hidden.shape).bernoulli_(keep, generator=self.draws)
            hidden = hidden * on_device(kept / keep, hidden.device).to(hidden.dtype)
        return functional.linear(self.norm(hidden).relu(), self.last, self.last_bias)


def generator(seed: int, purpose: str, *place: int) -> torch.Generator:
    """Random numbers of the host for one thing alone."""
    return torch.Generator().manual_seed(int(stream(seed, purpose, *place).random_raw()) >> 1)


def uniform(shape: tuple[int, ...], bound: float, draws: torch.Generator) -> Tensor:
    """Numbers in [-bound, bound)."""
    return torch.empty(shape).uniform_(-bound, bound, generator=draws)
