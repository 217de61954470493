"""Extractors, codecs and TorchScripts of some hundred numbers, with random weights."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from data_pipelines.views import Normalize
from trainer.evaluation.extractors import Extractor
from trainer.objectives.codec import Codec

CPU = torch.device("cpu")


class Linear(Extractor):
    """`width` random sums of all pixels, in float64."""

    def __init__(self, width: int, size: int, name: str = "linear", seed: int = 0):
        super().__init__(name, f"{width} sums, seed {seed}", CPU)
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(3 * size * size, width, generator=generator, dtype=torch.float64)
        self.weights, self.images = weights / size, 0

    def features(self, images: Tensor) -> Tensor:
        self.images += len(images)
        return images.flatten(1).double() / 255 @ self.weights


class Network(nn.Module):
    """As StyleGAN2-ADA's: features on demand, else what it was trained for."""

    def __init__(self, width: int):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, width, 3, 2), nn.Linear(width, 5)

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        features = self.body(images.float() / 255).tanh().mean((2, 3))
        return features if return_features else self.head(features)


def torchscript(folder: Path, name: str = "net", width: int = 6) -> tuple[Path, Network, str]:
    """A TorchScript of random weights, the network it was made from, and the file's sha256."""
    torch.manual_seed(0)
    network, path = Network(width).eval(), folder / f"{name}.pt"
    torch.jit.script(network).save(path)
    return path, network, hashlib.sha256(path.read_bytes()).hexdigest()


class Halves(nn.Module):
    """y is the mean of each channel, w what is left of the image: the decoder adds them."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        y = images.mean((2, 3))
        return {"y": y, "w": images - y[:, :, None, None]}


class Sum(nn.Module):
    """Pixels from y and w of images in [-1, 1]."""

    def forward(self, y: Tensor, w: Tensor) -> Tensor:
        return (y[:, :, None, None] + w + 1) / 2


def exact_codec() -> Codec:
    """A codec without error, of images in [-1, 1]."""
    return Codec(Halves(), Sum(), Normalize())
