"""Codecs that are fixed linear maps: what they lose, and where they keep it, is known."""

import numpy as np
import torch
from torch import Tensor

from data_pipelines.views import Normalize


class Projection:
    """Keeps the coordinates of an image along fixed orthonormal directions: the first `y` of them in y, the
    next `w` in w, which is a map of two channels."""

    def __init__(self, size: int, y: int, w: int, normalize: Normalize):
        numbers = np.random.default_rng(0).standard_normal((3 * size**2, y + w))
        directions = torch.from_numpy(np.linalg.qr(numbers)[0])
        self.to_y, self.to_w, self.size = directions[:, :y], directions[:, y:], size
        self.mean, self.std = (
            torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (normalize.mean, normalize.std)
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        flat = (self.pixels(images) - 0.3).flatten(1)
        y, w = (flat @ directions.to(flat.dtype) for directions in (self.to_y, self.to_w))
        return y, w.view(len(w), 2, w.shape[1] // 2, 1)

    def decode(self, y: Tensor, w: Tensor) -> Tensor:
        flat = y @ self.to_y.to(y.dtype).T + w.flatten(1) @ self.to_w.to(y.dtype).T
        return flat.view(-1, 3, self.size, self.size) + 0.3

    def pixels(self, images: Tensor) -> Tensor:
        return images * self.std.to(images.dtype) + self.mean.to(images.dtype)
