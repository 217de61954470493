"""Pixel diffusion on scikit-learn's digits: images in memory, a U-Net of some thousand parameters."""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from trainer.evaluation.pixel_diffusion import Images, PixelDiffusion
from trainer.generation.processes import PROCESSES
from trainer.networks.unet import UNet
from trainer.objectives.denoiser import Averaging, Diffusion
from trainer.recipe.evaluation import LinearProbe

TRAIN = 1437  # images, of 1,797


def digit_images(train: int = TRAIN, test: int = 360) -> tuple[Images, Images]:
    """Training and test images, uint8 [N, 3, 8, 8]."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    pixels = (data.images[order] * 255 / 16).round().astype(np.uint8)[:, None].repeat(3, 1)
    labels = data.target[order].astype(np.int64)
    last = TRAIN + test
    return (
        Images("train", pixels[:train], labels[:train]),
        Images("test", pixels[TRAIN:last], labels[TRAIN:last]),
    )


def tiny_unet(width: int = 8) -> UNet:
    """For images of 8 pixels a side; every weight is random, as no initial one of ours is zero."""
    torch.manual_seed(0)
    return UNet(3, 8, width, (1, 2), blocks=1, attention=(4,), dropout=0.1)


def pixel_diffusion(
    network: torch.nn.Module, images: Images, process: str = "flow", predict: str = "v"
) -> Diffusion:
    """An objective of images in [-1, 1], with their mean and spread."""
    scaled = torch.from_numpy(images.pixels).float() / 127.5 - 1
    return Diffusion(
        network, PROCESSES[process](), predict, scaled.mean(), scaled.std(), Averaging(20_000.0), batch=64
    )


def context_of(objective: Diffusion, folder: Path, *splits: Images, **changes: object) -> PixelDiffusion:
    """What an evaluator of pixel diffusion reads, of ten classes; `changes` of its fields."""
    train, test = splits
    fields = {"classes": 10, "linear": LinearProbe(l2=1e-2), "seed": 3, "batch": 100}
    device = torch.device("cpu")
    return PixelDiffusion(
        objective=objective, train=train, test=test, device=device, folder=folder, **(fields | changes)
    )
