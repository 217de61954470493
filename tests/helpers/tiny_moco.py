"""MoCo and hybrid objectives of some hundred parameters in float64, and shuffled batches for them."""

import numpy as np
import torch

from data_pipelines.loader import Batch
from data_pipelines.noise import Noise
from data_pipelines.plan import shuffled
from data_pipelines.views import Normalize
from trainer.networks.nvae import NvaeEncoder
from trainer.objectives.hybrid import Hybrid
from trainer.objectives.moco import Moco
from trainer.recipe.objectives import Head, HybridObjective, MocoObjective, Queue

BATCH, GROUP, GROUPS, WIDTH = 16, 4, 4, 6


def encoder(seed: int = 0, layout: str = "map", norm: str = "batch") -> NvaeEncoder:
    """Of 8-px images; y is eight numbers."""
    torch.manual_seed(seed)
    sizes = {"size": 8, "patch": 2, "width": 4, "halvings": 1, "cells": 1, "tower": 1, "latent": 4}
    return NvaeEncoder(**sizes, layout=layout, decoder_tower=1, expansion=2, group=GROUP, norm=norm).double()


def moco_options(**options) -> MocoObjective:
    queue = {"keys": 3 * BATCH, **options.pop("queue", {})}
    head = {"units": 5, "width": WIDTH, **options.pop("head", {})}
    return MocoObjective(kind="moco", queue=Queue(**queue), head=Head(**head), **{"momentum": 0.9, **options})


def moco(seed: int = 0, norm: str = "batch", layout: str = "map", **options) -> Moco:
    torch.manual_seed(seed)
    chosen = moco_options(**options)
    return Moco(encoder(seed, layout, norm), chosen, BATCH, torch.float64, seed).double()


def hybrid(contrast=None, omega: float = 0.1, **options) -> Hybrid:
    contrast = contrast or moco()
    torch.manual_seed(1)
    chosen = HybridObjective(kind="hybrid", contrast=moco_options(), omega=omega, **options)
    return Hybrid(contrast, chosen, Normalize()).double()


def views(step: int, count: int = 2, size: int = 8) -> list[torch.Tensor]:
    """Views [16, 3, size, size] of the images of a step, in the order of the images."""
    generator = torch.Generator().manual_seed(100 + step)
    images = torch.randn(BATCH, 3, size, size, generator=generator, dtype=torch.float64)
    return [images + 0.3 * torch.randn(images.shape, generator=generator).double() for _ in range(count)]


def batch_of(batch_views: list[torch.Tensor], step: int, shuffle: bool = True, seed: int = 0) -> Batch:
    """The batch that a loader makes of views: with `shuffle` the second one's images change places."""
    seen = step * BATCH
    order = shuffled(seed, seen, BATCH, GROUP, GROUPS) if shuffle else None
    positions = np.tile(np.arange(BATCH), (len(batch_views), 1))
    batch_views = list(batch_views)
    if shuffle:
        positions[1], batch_views[1] = order, batch_views[1][torch.from_numpy(order)]
    label = torch.zeros(BATCH, dtype=torch.int64)
    return Batch(batch_views, positions, seen + positions, label, seen, Noise(seed, seen, 0, BATCH), order)
