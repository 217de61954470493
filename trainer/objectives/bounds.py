"""Lower bounds on mutual information as functions of scores, in nats.

Scores are [m, m, L]: scores[i, j, l] compares the representation of image i with the feature at
location l of image j. Pairs with i = j are from the joint distribution, all others from the product
of the marginals. A global bound has L = 1.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

softplus = partial(F.softplus, threshold=40.0)  # torch's own threshold of 20 costs float64 seven digits


def positives(scores: Tensor) -> Tensor:
    """The scores of an image with itself, [m, L]."""
    return scores.diagonal(dim1=0, dim2=1).T


def negatives(scores: Tensor) -> Tensor:
    """The scores with -inf where an image meets itself, [m, m, L]."""
    same = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return scores.masked_fill(same[:, :, None], -math.inf)


def jsd_loss(scores: Tensor) -> Tensor:
    """Minus the Jensen-Shannon bound, shifted so that a critic that knows nothing gives 0.

    E_product sp(T) + E_joint sp(-T) - 2 log 2, with sp the softplus: at least -2 log 2. Negatives are
    the mean over all ordered pairs of other images and their locations (arXiv 1808.06670, equation 4).
    """
    m, _, locations = scores.shape
    # softplus of -inf is 0 in value and gradient, so that pairs of an image with itself drop out
    negative = softplus(negatives(scores)).sum() / (m * (m - 1) * locations)
    return negative + softplus(-positives(scores)).mean() - 2 * math.log(2)


def infonce_loss(scores: Tensor) -> Tensor:
    """InfoNCE's cross-entropy: each location of an image among all locations of the other images.

    The mean over images i and locations l of -log(e^s / (e^s + sum of e^negatives of i)), s the score
    of i with its own location l (arXiv 1808.06670, equation 5, and rdevon/DIM). The sum over negatives
    is taken once an image and joined with each positive, so that no quadratic expansion exists.
    """
    rest = torch.logsumexp(negatives(scores).flatten(1), dim=1, keepdim=True)
    return softplus(rest - positives(scores)).mean()


def random_guess(bound: str, m: int, locations: int) -> float:
    """The loss of a critic that gives every pair the same score."""
    return 0.0 if bound == "jsd" else math.log(1 + (m - 1) * locations)


@torch.no_grad()
def information(scores: Tensor) -> Tensor:
    """A lower bound on the information between y and a local feature, nats, at most log m.

    log m + mean[s - log(e^s + sum_{j != i} mean_l e^{s_jl})]: the L dependent locations of an image
    count as one negative. Their sum would overclaim by up to log L (Poole et al., arXiv 1905.06922,
    for the bound with m images).
    """
    m, _, locations = scores.shape
    rest = torch.logsumexp(negatives(scores).flatten(1), dim=1, keepdim=True) - math.log(locations)
    return math.log(m) - softplus(rest - positives(scores)).mean()
