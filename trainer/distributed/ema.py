"""The momentum encoder's step, under every engine."""

import torch
from torch import nn

from trainer.distributed.partitioned import is_partitioned, local_part


@torch.no_grad()
def ema_update_(keys: list[nn.Parameter], queries: list[nn.Parameter], momentum: float) -> None:
    """Moves keys towards queries: k <- m k + (1 - m) q (He et al., arXiv 1911.05722, equation 2).

    To be called once per optimizer step, after it, with parameters that were read from the objective since
    the engine wrapped it: engines replace them. Nothing is sent: where parameters are sharded, the shard of a
    key moves towards the shard of its query.

    Args:
        momentum: m in [0, 1); keys are kept in float32 or wider: bf16 would lose most of a small step.
    """
    partitioned = [key for key in keys if is_partitioned(key)]
    moving, goals = [local_part(key) for key in keys], [local_part(query) for query in queries]
    torch._foreach_mul_(moving, momentum)
    torch._foreach_add_(moving, goals, alpha=1 - momentum)
    for key in partitioned:
        if key.ds_status == type(key.ds_status).AVAILABLE:
            # ZeRO-3 keeps whole copies of small parameters beside their shards: this one is out of date.
            key.partition()
