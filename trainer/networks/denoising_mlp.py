"""A denoiser of vectors: residual layers whose norms are moved by the time, as RCG has (arXiv 2312.03701)."""

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.denoising import TimeEmbedding

WAVES = 256  # numbers that describe a time


class Layer(nn.Module):
    """Norm, two layers, beside a shortcut; shift, scale and gate come from the time (arXiv 2212.09748)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.body = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)  # at first a layer changes nothing
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Vectors [n, width] and embedded times [n, width] -> [n, width]."""
        shift, scale, gate = self.modulation(F.silu(time)).chunk(3, 1)
        return x + gate * self.body(self.norm(x) * (1 + scale) + shift)


class DenoisingMlp(nn.Module):
    """Predicts a vector like its input, of noisy samples at times.

    Args:
        numbers: of a sample.
        width: of the layers; 1,536 as published.
        layers: 12 as published.
        condition: numbers of a condition; 0: none.
    """

    def __init__(self, numbers: int, width: int = 1536, layers: int = 12, condition: int = 0):
        super().__init__()
        self.temb = TimeEmbedding(WAVES, width, condition)
        self.first = nn.Linear(numbers, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, numbers)
        for layer in (self.modulation, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, noisy: Tensor, time: Tensor, condition: Tensor | None = None, conditioned: Tensor | None = None
    ) -> Tensor:
        """Samples [n, numbers] -> a prediction of the same shape; else as `UNet.forward`."""
        embedded = self.temb(time, condition, conditioned)
        x = self.first(noisy)
        for layer in self.layers:
            x = layer(x, embedded)
        shift, scale = self.modulation(F.silu(embedded)).chunk(2, 1)
        return self.last(self.norm(x) * (1 + scale) + shift)
