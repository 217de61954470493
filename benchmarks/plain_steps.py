"""Training steps as one writes them in plain PyTorch, of a recipe's own network and sizes: the alternative.

The network is the recipe's, with torch's batch-norm over the whole batch and maps as torch lays them out. A
MoCo-v2 step is that of lightly's example and of facebookresearch/moco on one GPU: the queue is cloned and all
logits are made. Where lightly is installed its loss, memory bank and momentum update are used. A DIM step
makes all scores of a group of negatives, as rdevon/DIM does.
"""

import copy
import importlib.metadata
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipelines.common.errors import UserError
from data_pipelines.loader import Batch
from trainer.networks.batch_norm import GroupBatchNorm
from trainer.objectives.dim import Dim
from trainer.objectives.hybrid import Hybrid
from trainer.objectives.moco import Moco
from trainer.recipe.schema import Pretrain
from trainer.training.build import build_objective

Loss = Callable[[Tensor, Tensor], Tensor]


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """torch's batch-norm, of vectors and maps alike."""

    def _check_input_dim(self, input: Tensor) -> None:
        return


def plain_norms(module: nn.Module) -> nn.Module:
    """The module with torch's batch-norm in the place of ours, in the usual layout of memory."""
    for name, child in list(module.named_children()):
        if isinstance(child, GroupBatchNorm):
            setattr(module, name, BatchNorm(len(child.weight), eps=child.eps))
        else:
            plain_norms(child)
    return module


class PlainStep:
    """One optimizer step on a batch: `step(batch)`.

    Args:
        recipe: of MoCo, of a hybrid around it, or of DIM with the local term alone.

    Attributes:
        by: whose step it is, in words.

    Raises:
        UserError: another objective.
    """

    def __init__(self, recipe: Pretrain, device: torch.device):
        self.precision, self.device = recipe.precision, device
        self.by = "plain PyTorch"
        objective = plain_norms(build_objective(recipe)).to(device, memory_format=torch.contiguous_format)
        self.objective = objective
        contrast = objective.contrast if isinstance(objective, Hybrid) else objective
        if isinstance(objective, Dim) and not (objective.options.alpha or objective.options.gamma):
            self.loss = self._dim
        elif isinstance(contrast, Moco):
            self.loss = self._moco
            self._prepare_moco(contrast)
        else:
            raise UserError(f"objective.kind={recipe.objective.kind}: there is no plain step of it here")
        parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        lr = recipe.optimizer.rate(recipe.batch)
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, lr, momentum=0.9)
        if recipe.optimizer.kind in ("adam", "adamw"):
            self.optimizer = torch.optim.Adam(parameters, lr)

    def __call__(self, batch: Batch) -> Tensor:
        self.optimizer.zero_grad()
        views = [view.contiguous() for view in batch.views]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.loss(*views)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    # ---- MoCo-v2, and with a decoder beside it ---------------------------------------------------------

    def _prepare_moco(self, moco: Moco) -> None:
        self.queries = nn.ModuleList([moco.encoder, moco.head])
        self.keys = copy.deepcopy(self.queries).requires_grad_(False)
        options = moco.options
        width = options.head.width
        self.momentum, self.criterion = options.momentum, loss_of_lightly(options, width)
        self.follow = follow
        if self.criterion:
            from lightly.models.utils import update_momentum

            self.follow, self.by = update_momentum, f"lightly {importlib.metadata.version('lightly')}"
        else:
            self.criterion = ClonedQueue(options.queue.keys, width, options.temperature, self.device)

    def _moco(self, first: Tensor, second: Tensor) -> Tensor:
        self.follow(self.queries, self.keys, self.momentum)
        encoder, head = self.queries
        features = encoder(first)
        with torch.no_grad():
            order = torch.randperm(len(second), device=self.device)  # the keys' batch is shuffled, and back
            key = self.keys[1](self.keys[0](second[order])["y"])[order.argsort()]
        loss = self.criterion(head(features["y"]).float(), key.float())
        if isinstance(self.objective, Hybrid):
            decoded = self.objective.decoder(features["y"], features["w"])
            loss = loss + self.objective.omega * (decoded.float() - first).square().sum((1, 2, 3)).mean()
        return loss

    # ---- DIM(L) --------------------------------------------------------------------------------------

    def _dim(self, images: Tensor) -> Tensor:
        dim = self.objective
        features = dim.encoder(images)
        local, y = dim.critic(features["local"], features["y"])
        loss = jsd_of_all_scores if dim.options.bound == "jsd" else infonce_of_all_scores
        size = dim.negatives or len(y)
        groups = zip(local.float().split(size), y.float().split(size), strict=True)
        return torch.stack([loss(locations, rows) for locations, rows in groups]).mean()


def follow(queries: nn.Module, keys: nn.Module, momentum: float) -> None:
    """The momentum update of facebookresearch/moco and of lightly, a parameter at a time."""
    for query, key in zip(queries.parameters(), keys.parameters(), strict=True):
        key.data = key.data * momentum + query.data * (1 - momentum)


def loss_of_lightly(options, width: int) -> Loss | None:
    """lightly's loss with its memory bank; None where lightly is not installed."""
    try:
        from lightly.loss import NTXentLoss
    except ImportError:
        return None
    return NTXentLoss(temperature=options.temperature, memory_bank_size=(options.queue.keys, width))


class ClonedQueue:
    """MoCo's InfoNCE with a queue [D, K], as facebookresearch/moco and lightly's memory bank do it."""

    def __init__(self, keys: int, width: int, temperature: float, device: torch.device):
        self.queue, self.place = F.normalize(torch.randn(width, keys, device=device), dim=0), 0
        self.temperature = temperature

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
        negatives = torch.einsum("nc,ck->nk", query, self.queue.clone().detach())
        logits = torch.cat([(query * key).sum(1, keepdim=True), negatives], dim=1) / self.temperature
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        room = self.queue.shape[1] - self.place
        self.queue[:, self.place : self.place + len(key)] = key[:room].T
        self.place = (self.place + len(key)) % self.queue.shape[1] if len(key) < room else 0
        return loss


# ---- the published losses of DIM(L), with all scores ----------------------------------------------------


def all_scores(local: Tensor, y: Tensor) -> Tensor:
    """Encodings of n images [n, L, units] and of their y [n, units] -> scores [n of y, n of images, L]."""
    n, locations, units = local.shape
    return (y @ local.reshape(n * locations, units).T).view(n, n, locations)


def jsd_of_all_scores(local: Tensor, y: Tensor) -> Tensor:
    """The Jensen-Shannon bound as rdevon/DIM computes it: shifted by 2 log 2, and negated."""
    scores = all_scores(local, y)
    own = torch.eye(len(y), device=y.device)[:, :, None]
    n, locations = len(y), local.shape[1]
    positive = ((math.log(2) - F.softplus(-scores)) * own).sum() / (n * locations)
    negative = ((F.softplus(-scores) + scores - math.log(2)) * (1 - own)).sum() / (n * (n - 1) * locations)
    return negative - positive


def infonce_of_all_scores(local: Tensor, y: Tensor) -> Tensor:
    """InfoNCE as rdevon/DIM computes it: each of the n·L positives beside all negatives of its image.

    [n, L, 1 + n·L] scores exist; those of the image's own locations are masked out.
    """
    scores = all_scores(local, y)
    n, locations = len(y), local.shape[1]
    own = torch.eye(n, device=y.device)[:, :, None]
    positive = scores.diagonal().T[:, :, None]  # [n, L, 1]
    negative = (scores - 1e4 * own).reshape(n, 1, n * locations).expand(-1, locations, -1)
    return -F.log_softmax(torch.cat([positive, negative], dim=2), dim=2)[:, :, 0].mean()
