"""Bilinear upsampling whose gradient has equal bits in every run, on a GPU too."""

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample_bilinear(x: Tensor) -> Tensor:
    """Doubles both sides of maps, with aligned corners: [n, features, H, W] -> [n, features, 2 H, 2 W].

    On a GPU the gradient of `F.interpolate` is summed by atomics, in any order; there two constant matrices
    are multiplied with the maps (in float32 at least, whatever autocast says: bf16 weights do not sum to 1).
    """
    if x.device.type == "cpu":
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
    return upsample_by_matrices(x)


def upsample_by_matrices(x: Tensor) -> Tensor:
    """As `upsample_bilinear`; maps that are channels_last are not copied."""
    n, features, height, width = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        rows = x.permute(0, 2, 3, 1).to(dtype).reshape(n, height, width * features)
        rows = doubling(height, dtype, x.device) @ rows
        rows = doubling(width, dtype, x.device) @ rows.view(n * 2 * height, width, features)
        return rows.view(n, 2 * height, 2 * width, features).permute(0, 3, 1, 2).to(x.dtype)


def doubling(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Linear interpolation, [2 side, side]: row i weighs the pixels around i (side - 1) / (2 side - 1)."""
    places = torch.arange(2 * side, dtype=dtype, device=device) * ((side - 1) / (2 * side - 1))
    pixels = torch.arange(side, dtype=dtype, device=device)
    return (1 - (places[:, None] - pixels).abs()).clamp(0)
