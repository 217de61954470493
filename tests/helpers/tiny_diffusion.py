"""Pixel diffusion on scikit-learn's digits: a U-Net of some thousand parameters, and what evaluators read."""

from pathlib import Path

import torch
from torch import nn

from data_pipelines.image_options import ImageOptions
from data_pipelines.reader import Reader
from data_pipelines.views import Normalize
from trainer.evaluation.pixel_diffusion import PixelDiffusion
from trainer.generation.processes import PROCESSES
from trainer.generation.scaling import Scaling
from trainer.networks.unet import UNet
from trainer.objectives.denoiser import Averaging, Diffusion
from trainer.recipe.evaluation import LinearProbe


def tiny_unet(side: int = 8, width: int = 8, dropout: float = 0.1) -> UNet:
    """For images of some pixels a side; attention behind the blocks of level 1 and in the middle."""
    torch.manual_seed(0)
    return UNet(3, side, width, (1, 2), blocks=1, attention=(side // 2,), dropout=dropout)


def pixel_diffusion(network: nn.Module, process: str = "flow", predict: str = "v") -> Diffusion:
    """An objective of normalised digits, with about their mean and spread."""
    scaling = Scaling(torch.full((1, 1, 1), -0.4), torch.full((1, 1, 1), 0.75))
    objective = Diffusion(network, PROCESSES[process](), predict, scaling, Averaging(20_000.0), batch=64)
    with torch.no_grad():  # else the average is the network
        for parameter in objective.average.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return objective


def context_of(
    objective: Diffusion, folder: Path, train: Reader, test: Reader, size: int = 8, **changes: object
) -> PixelDiffusion:
    """What an evaluator of pixel diffusion reads, of ten classes; `changes` of its fields."""
    fields = {"classes": 10, "linear": LinearProbe(l2=1e-2), "seed": 3, "batch": 100} | changes
    images = ImageOptions(size, Normalize(), 1, torch.device("cpu"))
    return PixelDiffusion(objective=objective, train=train, test=test, images=images, folder=folder, **fields)
