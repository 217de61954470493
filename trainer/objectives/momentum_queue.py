"""The sharded momentum queue: the negatives of InfoNCE, sharded over the ranks.

The part of the loss that the negatives n_j make is attention. With queries q and temperature t,

    log sum_j e^(q·n_j / t)                 is the log-sum-exp of an attention with keys n_j and scale 1/t,
    its gradient in q, times t,             is the output of that attention with values n_j,

so one fused attention call gives loss and gradient, no matrix of queries by keys ever exists, and the
backward pass is a scaling. Shards of the keys combine exactly by their log-sum-exps. Keys carry no gradient.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from data_pipelines.draws import stream
from trainer.distributed import collectives
from trainer.distributed.rows import ShardedModule, TensorShard
from trainer.objectives.queue_attention import attend

CACHED = 2**18  # numbers that fit the cache of a processor
STORAGE = {"float32": torch.float32, "float64": torch.float64, "bf16": torch.bfloat16}


class MomentumQueue(ShardedModule):
    """The last `keys` keys of the run, first in, first out, in the order of the global batch.

    A rank keeps a shard [T, n, width]: of each of T = keys / batch steps the n = batch / ranks keys that it
    added itself, so keys are never gathered. No pointer is stored: step s writes slot s mod T. The shard is
    neither parameter nor buffer, since engines broadcast or cut those; it is created at its first use, on
    the device of the queries, so a model that is only evaluated holds none.

    Args:
        keys: K, of all ranks together.
        width: of a key.
        batch: keys that all ranks add in an optimizer step.
        start: `random` begins with unit keys drawn by (seed, slot), `empty` with none.
        storage: what keys are kept in: float32, float64 or bf16.
        seed: of the first keys.

    Raises:
        ValueError: `keys` is no multiple of `batch`.
    """

    def __init__(
        self,
        keys: int,
        width: int,
        batch: int,
        start: str = "random",
        storage: str = "float32",
        seed: int = 0,
    ):
        super().__init__()
        if keys % batch or keys < batch:
            below = keys // batch * batch
            numbers = f"{below} or {below + batch}" if below else f"{batch}"
            raise ValueError(
                f"keys={keys} is no multiple of the {batch} keys that a step adds; "
                f"use {numbers}, or change batch"
            )
        self.keys, self.width, self.batch, self.seed = keys, width, batch, seed
        self.slots = keys // batch
        self.random = start == "random"
        self.storage = STORAGE[storage]
        self.shard: Tensor | None = None

    def keys_at(self, step: int) -> int:
        """Keys of all ranks that optimizer step number `step` (the first is 0) compares its queries with."""
        return self.batch * (self.slots if self.random else min(step, self.slots))

    def random_keys_left(self, step: int) -> int:
        """Of those, how many are still the random ones that the queue began with."""
        return self.batch * max(self.slots - step, 0) if self.random else 0

    def log_sum_exp(self, queries: Tensor, temperature: float, step: int) -> Tensor:
        """log sum_j e^(q·n_j / temperature) over the keys of all ranks, [n]; with no keys, minus infinity.

        Args:
            queries: [n, width], equally many on each rank; every rank must call.
            step: number of the optimizer step, 0 for the run's first.

        Computed in float32, in float64 where queries or keys are, whatever autocast says. Differentiable in
        the queries, once; the backward pass does not communicate.
        """
        shard = self._shard_on(queries.device)
        wide = torch.float64 in (queries.dtype, self.storage)
        queries = queries.to(torch.float64 if wide else torch.float32)
        filled = self.keys_at(step) // self.batch
        if not filled:
            return queries.sum(1) * 0 - math.inf  # its gradient is 0, as that of a loss without negatives
        with torch.autocast(queries.device.type, enabled=False):
            return _LogSumExp.apply(queries, shard[:filled].flatten(0, 1), temperature)

    @torch.no_grad()
    def enqueue(self, keys: Tensor, step: int) -> None:
        """Puts this rank's keys [batch / ranks, width] of optimizer step number `step` where the oldest were.

        Rank r holds the keys of the global batch from r * n on, in its order: with gradient accumulation
        those of all micro-batches in a row, in a symmetric loss in the order (sample, view).

        Raises:
            ValueError: the keys have another shape.
        """
        shard = self._shard_on(keys.device)
        if keys.shape != shard.shape[1:]:
            raise ValueError(
                f"a step adds keys of shape {list(shard.shape[1:])} a rank, not {list(keys.shape)}"
            )
        shard[step % self.slots].copy_(keys)

    # ---- the shard ---------------------------------------------------------------------------------

    def _shard_on(self, device: torch.device) -> Tensor:
        if self.shard is None:
            self.shard = self._first_keys(device)
        elif self.shard.device != device:
            self.shard = self.shard.to(device)
        return self.shard

    @torch.no_grad()
    def _first_keys(self, device: torch.device) -> Tensor:
        n = self.batch // collectives.world_size()
        shape = (self.slots, n, self.width)
        if not self.random:
            return torch.zeros(shape, dtype=self.storage, device=device)
        shard = torch.empty(shape, dtype=self.storage, device=device)
        some = max(1, CACHED // (n * self.width))  # slots at a time
        for slot in range(0, self.slots, some):
            part = shard[slot : slot + some]
            slots = range(slot, slot + len(part))
            part.copy_(unit_keys(self.seed, slots, collectives.rank() * n, n, self.width))
        return shard

    def sharded_state_dict(self) -> dict[str, TensorShard]:
        """This rank's rows of a checkpoint's `keys` [batch, T, width]: row p is place p of a global batch."""
        shard = self._shard_on(torch.device("cpu") if self.shard is None else self.shard.device)
        n = shard.shape[1]
        return {
            "keys": TensorShard(
                (self.batch, self.slots, self.width), collectives.rank() * n, shard.transpose(0, 1)
            )
        }

    def load_sharded_state_dict(self, rows: Mapping[str, Tensor]) -> None:
        """Takes this rank's rows back: `keys` [batch / ranks, T, width].

        Raises:
            ValueError: they have another shape.
        """
        keys, shape = rows["keys"], (self.batch // collectives.world_size(), self.slots, self.width)
        if keys.shape != shape:
            raise ValueError(f"a rank's rows of the queue have shape {list(shape)}, not {list(keys.shape)}")
        self.shard = torch.empty(keys.transpose(0, 1).shape, dtype=self.storage).copy_(keys.transpose(0, 1))


def unit_keys(seed: int, slots: range, first: int, count: int, width: int) -> Tensor:
    """Random unit keys [slots, count, width] in float32: of each slot those at places first, first + 1, ...

    Normal numbers by Box and Muller from 32-bit pieces of the slot's random bits, brought to unit length.
    """
    steps = -(-width // 8)  # of the generator a key; each makes eight pieces
    bits = []
    for slot in slots:
        generator = stream(seed, "queue", slot)
        generator.advance(first * steps)
        bits.append(torch.from_numpy(generator.random_raw(count * steps * 4).view("int32")))
    uniform = torch.stack(bits).view(len(slots), count, 8 * steps).float().mul_(2.0**-32).add_(0.5)
    radius, angle = uniform.chunk(2, dim=2)
    radius = radius.clamp(min=2.0**-33).log_().mul_(-2).sqrt_()
    angle = angle * (2 * math.pi)
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=2)[:, :, :width]
    return nn.functional.normalize(normal, dim=2)


# ---- the loss of all shards ---------------------------------------------------------------------------


class _LogSumExp(torch.autograd.Function):
    """Of queries [n, D] over the shards [N, D] of all ranks. Saves the softmax-weighted mean of the keys."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, shard: Tensor, temperature: float) -> Tensor:
        everyones = collectives.all_gather(queries)
        mean, log = attend(everyones, shard, temperature)
        top = collectives.all_reduce_max(log.clone())
        weight = (log - top).exp()[:, None]
        sums = collectives.reduce_scatter(torch.cat([weight * mean, weight], dim=1))  # of this rank's queries
        mean, weight = sums[:, :-1] / sums[:, -1:], sums[:, -1]
        ctx.save_for_backward(mean)
        ctx.temperature = temperature
        return top.view(collectives.world_size(), -1)[collectives.rank()] + weight.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (mean,) = ctx.saved_tensors
        return gradient[:, None] * mean / ctx.temperature, None, None
