"""The precision of an objective's forward pass."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from data_pipelines.loader import Batch


def forward_precision(precision: str, device: torch.device) -> AbstractContextManager:
    """A context for one call of an objective: with "bf16", autocast to bfloat16 where that is safe.

    Parameters stay float32. Any other precision is that of the parameters and images: nothing changes.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


class MixedPrecision(nn.Module):
    """An objective in bfloat16 autocast, with results in float32.

    An engine wraps this module, so that the autocast is inside what DeepSpeed runs: DeepSpeed switches off
    one that is around it.
    """

    def __init__(self, objective: nn.Module, device: torch.device):
        super().__init__()
        self.objective, self.device = objective, device

    def forward(self, batch: Batch) -> dict[str, Tensor | float]:
        with forward_precision("bf16", self.device):
            values = self.objective(batch)
        bf16 = {n: v for n, v in values.items() if isinstance(v, Tensor) and v.dtype == torch.bfloat16}
        return values | {name: value.float() for name, value in bf16.items()}


def with_precision(objective: nn.Module, precision: str, device: torch.device) -> nn.Module:
    """The module that an engine runs: the objective itself, or in "bf16" a MixedPrecision around it."""
    return MixedPrecision(objective, device) if precision == "bf16" else objective
