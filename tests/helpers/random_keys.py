"""Queries and keys for the tests of the momentum queue, and the slow way to its log-sum-exp."""

import torch
import torch.nn.functional as F

from trainer.objectives.momentum_queue import MomentumQueue

TAU = 0.07


def units(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, dtype=torch.float64, generator=draws), dim=-1).to(dtype)


def full_logits(queries: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The oracle: log-sum-exp [B] by autograd over [B, K] scores, and its gradient."""
    queries = queries.detach().requires_grad_()
    log = torch.logsumexp(queries @ keys.T / TAU, dim=1)
    log.sum().backward()
    return log.detach(), queries.grad


def filled_queue(keys: torch.Tensor, batch: int, storage: str) -> MomentumQueue:
    """A queue that has been fed these keys [K, D] from step 0 on."""
    queue = MomentumQueue(len(keys), keys.shape[1], batch, "empty", storage)
    for step, part in enumerate(keys.split(batch)):
        queue.enqueue(part, step)
    return queue
