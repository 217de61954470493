"""Batch normalisation over groups of consecutive images, so that results do not depend on ranks."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.distributed import collectives
from trainer.networks.grouped_statistics import normalize_groups

MOMENTUM = 0.1  # torch's: weight of the global batch in the running statistics


class GroupBatchNorm(nn.Module):
    """Batch-norm whose statistics are taken over groups of `group` consecutive images.

    In training, input [n, features, ...] with n a multiple of `group`; each group is normalised by
    its own mean and variance. Where an image makes several consecutive `rows` of the input (the patches
    it is cut into), its group's statistics are over all of them. Running statistics do not move in the
    forward pass: `update_running_stats` moves them once an optimizer step, by the mean over all
    groups of the global batch. Parameter and buffer names are torch's. Ioffe and Szegedy, arXiv 1502.03167.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, group: int, rows: int = 1, eps: float = 1e-5):
        super().__init__()
        self.group, self.rows, self.eps = group, rows, eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))
        # Sums over the groups seen since the last update: never saved, since a save follows an update.
        self.pending: Tensor | None = None
        self.groups = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        size = min(len(x), self.group * self.rows)
        output, total = normalize_groups(x, self.weight, self.bias, size, self.eps)
        self.pending = total if self.pending is None else self.pending + total
        self.groups += -(-len(x) // size)
        return output

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # of torch's own BatchNorm: a count unused here
        super()._load_from_state_dict(state_dict, prefix, *others)

    def extra_repr(self) -> str:
        sizes = f"{len(self.weight)}, group={self.group}, rows={self.rows}"
        return f"{sizes}, eps={self.eps}"


def normalization(kind: str, features: int, group: int, rows: int = 1) -> nn.Module:
    """The norm of a layer of [n, features, ...]: "batch" over groups of `group` images, or "group".

    "group" is torch's GroupNorm (Wu and He, arXiv 1803.08494): statistics are per image, without running
    statistics. It has their 32 groups of channels, or as many as leave 16 channels to each, which is their
    other setting: a vector cut into groups of one would be all zeros.

    Raises:
        ValueError: another kind.
    """
    if kind == "batch":
        return GroupBatchNorm(features, group, rows)
    if kind == "group":
        return nn.GroupNorm(math.gcd(32, features, max(1, features // 16)), features)
    raise ValueError(f"norm={kind}: expected batch or group")


def _take(module: nn.Module) -> list[tuple[GroupBatchNorm, Tensor]]:
    """The layers that saw groups since the last call, each with its mean statistics [2, features]."""
    taken = []
    for layer in module.modules():
        if isinstance(layer, GroupBatchNorm) and layer.pending is not None:
            taken.append((layer, layer.pending / layer.groups))
            layer.pending, layer.groups = None, 0
    return taken


@torch.no_grad()
def update_running_stats(module: nn.Module) -> None:
    """Moves all running statistics by the mean over the groups of the global batch: one all-reduce.

    Every rank holds equally many groups, so the mean over ranks is the mean over groups.
    """
    taken = _take(module)
    if not taken:
        return
    flat = collectives.all_reduce_mean(torch.cat([statistics.flatten() for _, statistics in taken]))
    buffers = [buffer for layer, _ in taken for buffer in (layer.running_mean, layer.running_var)]
    torch._foreach_lerp_(buffers, flat.split([len(buffer) for buffer in buffers]), MOMENTUM)


@torch.no_grad()
def recalibrate(
    module: nn.Module, images: Iterable[Tensor], run: Callable[[Tensor], object] | None = None
) -> None:
    """Re-estimates all running statistics as the mean over the groups of clean `images` [n, 3, H, W].

    They go through the module, or through `run`, where several networks are passed.
    A last incomplete group of a batch is left out; of a batch smaller than a group all images make one.
    """
    was_training = module.training
    module.train()
    groups = [layer.group for layer in module.modules() if isinstance(layer, GroupBatchNorm)]
    for batch in images:
        whole = batch[: len(batch) // max(groups) * max(groups) or len(batch)] if groups else batch
        (run or module)(whole)
    for layer, (mean, var) in _take(module):
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)
    module.train(was_training)
