"""Lower bounds on mutual information as functions of scores, in nats.

Scores are [rows, images, L]: scores[i, j, l] compares the representation of row i with the feature at
location l of image j. A row and its own image are a pair from the joint distribution, all other pairs
from the product of the marginals. A global bound has L = 1. `reduce_scores` reduces scores to what all bounds
need, a number or two a row, so that scores may come in pieces and from several ranks.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.distributed import collectives

softplus = partial(F.softplus, threshold=40.0)  # torch's own threshold of 20 costs float64 seven digits

PIECE = 2**21  # numbers that exist at a time: 8 MiB in float32


@dataclass(frozen=True)
class Pairs:
    """Scores of R rows with images of L locations, reduced to what all bounds need.

    Attributes:
        positives: [m, L], scores of m rows with their own image.
        log_negatives: [R], the log of the sum of e^score over a row's negatives.
        softplus_negatives: [R], the sum of their softplus, where the bound reads it.
        images: all images that a row is compared with, its own included.
        locations: L.
        first: the row that the m begin at. R = m, unless the rows are those of all ranks.
    """

    positives: Tensor
    log_negatives: Tensor
    softplus_negatives: Tensor | None
    images: int
    locations: int
    first: int = 0

    @property
    def count(self) -> int:
        """Negatives of a row."""
        return (self.images - 1) * self.locations

    @property
    def paired_log_negatives(self) -> Tensor:
        """`log_negatives` of the rows of `positives`, [m, 1]."""
        return self.log_negatives[self.first : self.first + len(self.positives), None]

    def at_location(self, location: int) -> "Pairs":
        """The same with the positives of one location alone, [m, 1]; negatives stay those of all."""
        return replace(self, positives=self.positives[:, location : location + 1])


def reduce_scores(scores: Tensor, shift: int = 0, with_softplus: bool = True) -> Pairs:
    """Reduces scores [rows, images, L]; the own image of row i is image i + shift, if there is one."""
    rows, images, locations = scores.shape
    number = torch.arange(max(rows, images), device=scores.device)
    of_rows = number[:rows] + shift if shift else number[:rows]
    same = of_rows[:, None] == number[None, :images]
    rest = scores.masked_fill(same[:, :, None], -math.inf)  # softplus(-inf) is 0, as is e^-inf
    return Pairs(
        scores.diagonal(shift, dim1=0, dim2=1).T,
        torch.logsumexp(rest.flatten(1), dim=1),
        softplus(rest).sum((1, 2)) if with_softplus else None,
        images,
        locations,
    )


def reduce_in_pieces(
    score: Callable[[Tensor, Tensor], Tensor], local: Tensor, y: Tensor, cost: int, shift: int, bound: str
) -> Pairs:
    """`reduce_scores(score(local, y))` a few rows at a time, so that only a piece of the scores ever exists.

    Args:
        score: encodings of images [m, L, d] and of rows [R, d] -> scores [R, m, L].
        cost: about how many numbers exist for each score.
        shift: as for `reduce_scores`.

    The pieces are computed anew in the backward pass.
    """
    rows = max(1, PIECE // (local.shape[0] * local.shape[1] * cost))

    def piece(local: Tensor, part: Tensor, shift: int) -> tuple[Tensor, Tensor, Tensor | None]:
        pairs = reduce_scores(score(local, part), shift, bound == "jsd")
        return pairs.positives, pairs.log_negatives, pairs.softplus_negatives

    images, locations = local.shape[:2]
    if rows >= len(y):
        return Pairs(*piece(local, y, shift), images, locations)
    pieces = [
        checkpoint(piece, local, y[at : at + rows], at + shift, use_reentrant=False, preserve_rng_state=False)
        for at in range(0, len(y), rows)
    ]
    positives, logs, sums = zip(*pieces, strict=True)
    softplus_negatives = torch.cat(sums) if sums[0] is not None else None
    return Pairs(torch.cat(positives), torch.cat(logs), softplus_negatives, images, locations)


def join_ranks(pairs: Pairs, rank: int, images: int) -> Pairs:
    """Joins the pairs of all ranks: each rank has compared the rows of all with its m images.

    Exact: log-sum-exps and sums over parts of the negatives combine. Gradients flow to every rank.

    Args:
        images: of all ranks.
    """
    logs = torch.logsumexp(collectives.all_gather(pairs.log_negatives[None]), dim=0)
    sums = pairs.softplus_negatives
    return replace(
        pairs,
        log_negatives=logs,
        softplus_negatives=None if sums is None else collectives.all_gather(sums[None]).sum(0),
        images=images,
        first=rank * len(pairs.positives),
    )


def reduce_groups(
    score: Callable[[Tensor, Tensor], Tensor],
    local: Tensor,
    y: Tensor,
    cost: int,
    size: int | None,
    bound: str,
) -> Iterator[Pairs]:
    """The pairs of each group of `size` consecutive images, which are each other's negatives.

    Args:
        score, local, y, cost: as for `reduce_in_pieces`; local and y are this rank's.
        size: None: all images of all ranks are one group. Every rank must call.
    """
    if size is not None:
        for images, rows in zip(local.split(size), y.split(size), strict=True):
            yield reduce_in_pieces(score, images, rows, cost, 0, bound)
        return
    rank, world_size = collectives.rank(), collectives.world_size()
    shards = reduce_in_pieces(score, local, collectives.all_gather(y), cost, -rank * len(y), bound)
    yield join_ranks(shards, rank, world_size * len(y))


def check_groups(norm: str, group: int, negatives: int | None) -> None:
    """Checks the groups of an objective whose negatives are other images of the batch.

    Args:
        norm, group: of the encoder's layers; negatives: images of a group of negatives, None: all.

    Raises:
        ValueError: a group of one image, which has no negative; or negatives from several groups of
            batch-norm, whose statistics would separate positives from negatives.
    """
    size = negatives or group  # where all images are negatives, an evaluation compares those of a group
    if size < 2:
        name = "norm" if size == group else "negatives"
        raise ValueError(f"{name}={size}: a group needs at least 2 images; 64 is the paper's")
    if negatives is None and norm == "batch":
        raise ValueError(
            "negatives=global with encoder.norm=batch: statistics of a group would reveal which "
            "images are in the same group; set encoder.norm=group, or a number of images"
        )


# ---- the bounds, as losses -----------------------------------------------------------------------


def jsd_loss(pairs: Pairs) -> Tensor:
    """Minus the Jensen-Shannon bound, shifted so that a critic that knows nothing gives 0.

    E_product sp(T) + E_joint sp(-T) - 2 log 2, with sp the softplus: at least -2 log 2. Negatives are
    the mean over all ordered pairs of other images and their locations (arXiv 1808.06670, equation 4).
    """
    assert pairs.softplus_negatives is not None  # computed for this bound
    negative = pairs.softplus_negatives.sum() / (len(pairs.softplus_negatives) * pairs.count)
    return negative + softplus(-pairs.positives).mean() - 2 * math.log(2)


def infonce_loss(pairs: Pairs) -> Tensor:
    """InfoNCE's cross-entropy: each location of an image among all locations of the other images.

    The mean over images i and locations l of -log(e^s / (e^s + sum of e^negatives of i)), s the score
    of i with its own location l (arXiv 1808.06670, equation 5, and rdevon/DIM). The sum over negatives
    is taken once an image and joined with each positive, so that no quadratic expansion exists.
    """
    return softplus(pairs.paired_log_negatives - pairs.positives).mean()


def log_mean(pairs: Pairs) -> Tensor:
    """log E_product e^T, over all negatives of all rows."""
    return torch.logsumexp(pairs.log_negatives, dim=0) - math.log(len(pairs.log_negatives) * pairs.count)


def dv_loss(pairs: Pairs, log_denominator: Tensor | None = None) -> Tensor:
    """Minus the Donsker-Varadhan bound, E_joint T - log E_product e^T (arXiv 1801.04062, equation 4).

    `log_denominator`: the log of a less noisy mean of e^T, which takes the batch's own place in the gradient
    of the logarithm (section 3.2 there: the batch's own makes it biased). The value stays the same.
    """
    batch_mean = log_mean(pairs)
    if log_denominator is None:
        return batch_mean - pairs.positives.mean()
    slope = torch.exp(batch_mean - log_denominator)  # its gradient is E e^T grad T / denominator
    return batch_mean.detach() + slope - slope.detach() - pairs.positives.mean()


def nwj_loss(pairs: Pairs) -> Tensor:
    """Minus the bound of Nguyen, Wainwright and Jordan, E_joint T - E_product e^(T-1) (arXiv 0809.0853)."""
    return torch.exp(log_mean(pairs) - 1) - pairs.positives.mean()


LOSSES = {"jsd": jsd_loss, "infonce": infonce_loss, "dv": dv_loss, "nwj": nwj_loss}


def random_guess(bound: str, m: int, locations: int) -> float:
    """The loss of the best critic that gives every pair the same score."""
    return math.log(1 + (m - 1) * locations) if bound == "infonce" else 0.0


@torch.no_grad()
def information(pairs: Pairs) -> Tensor:
    """A lower bound on the information between y and a local feature, nats, at most log m.

    log m + mean[s - log(e^s + sum_{j != i} mean_l e^{s_jl})], m the images among the negatives and the own
    one: the L dependent locations of an image count as one negative. Their sum would overclaim by up to log L
    (Poole et al., arXiv 1905.06922, for the bound with m images). Any critic may be read so.
    """
    rest = pairs.paired_log_negatives - math.log(pairs.locations)
    return math.log(pairs.images) - softplus(rest - pairs.positives).mean()


class RunningMean(nn.Module):
    """MINE's running mean of e^T over the product of the marginals, as a logarithm (arXiv 1801.04062, 3.2).

    It moves once an optimizer step, by the mean over all groups of the global batch, and is equal on all
    ranks. Within a step a group sees the mean of the steps before, moved by its own e^T alone.
    """

    log_mean: Tensor
    started: Tensor

    def __init__(self, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("log_mean", torch.zeros(()))
        self.register_buffer("started", torch.zeros(()))
        self.pending: list[Tensor] = []

    def forward(self, log_mean: Tensor) -> Tensor:
        """The log of the denominator for a group whose log E e^T is `log_mean`; both without gradient."""
        log_mean = log_mean.detach()
        if self.training:
            self.pending.append(log_mean)
        return self._moved(log_mean)

    def _moved(self, log_mean: Tensor) -> Tensor:
        kept = self.log_mean + math.log(self.momentum)
        return torch.where(
            self.started > 0, torch.logaddexp(kept, log_mean + math.log(1 - self.momentum)), log_mean
        )

    @torch.no_grad()
    def update(self) -> None:
        """Moves the mean by what the groups since the last call had."""
        if not self.pending:
            return
        seen = torch.stack(self.pending)
        top = collectives.all_reduce_max(seen.max())
        batch_mean = top + collectives.all_reduce_mean(torch.exp(seen - top).mean()).log()
        self.log_mean.copy_(self._moved(batch_mean))
        self.started.fill_(1.0)
        self.pending = []
