"""Dropout whose masks are functions of a run's seed and of places in the run, whatever the ranks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class GroupDropout(nn.Dropout):
    """torch's dropout, whose masks come from a generator for each group of consecutive samples.

    Attributes:
        generators: on the device of the samples, as `keyed` sets them; None: masks are torch's, and differ
            from start to start and from rank to rank.
    """

    generators: Sequence[torch.Generator] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Samples [n, ...] of which every number is dropped with probability p, the others scaled up."""
        if self.generators is None or not self.training or not self.p:
            return super().forward(x)
        shape = len(x) // len(self.generators), *x.shape[1:]
        drawn = [torch.rand(shape, generator=one, device=x.device) for one in self.generators]
        return x * (torch.cat(drawn) >= self.p).to(x.dtype) / (1 - self.p)


@contextmanager
def keyed(network: nn.Module, generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Draws the masks of a network's `GroupDropout`s from these generators, in the order of its layers."""
    layers = [module for module in network.modules() if isinstance(module, GroupDropout)]
    for layer in layers:
        layer.generators = generators
    try:
        yield
    finally:
        for layer in layers:
            layer.generators = None
