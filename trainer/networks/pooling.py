"""Max-pooling whose gradient has equal bits in every run, on a GPU too."""

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class MaxPool(nn.MaxPool2d):
    """torch's, over square windows.

    On a GPU torch adds the gradients of overlapping windows by atomics, in any order. Where deterministic
    kernels are wanted they are added place by place of a window, which reads the map as many times.
    """

    kernel_size: int
    stride: int
    padding: int

    def forward(self, x: Tensor) -> Tensor:
        """Maps [n, features, H, W] -> [n, features, H', W']."""
        if x.device.type == "cpu" or not torch.backends.cudnn.deterministic:
            return super().forward(x)
        return max_pool_in_order(x, self.kernel_size, self.stride, self.padding)


def max_pool_in_order(x: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """`F.max_pool2d`; its gradient is the same but for the order in which it is added."""
    output: Tensor = _InOrder.apply(x, size, stride, padding)
    return output


class _InOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, stride: int, padding: int) -> Tensor:
        output, chosen = F.max_pool2d(x, size, stride, padding, return_indices=True)
        ctx.save_for_backward(chosen)
        ctx.sizes = x.shape, size, stride, padding
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (chosen,) = ctx.saved_tensors  # for each window the place in its map, row by row
        (n, features, height, width), size, stride, padding = ctx.sizes
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        sides = [
            side + 2 * padding for side in (height, width)
        ]  # what falls on the border counts for nothing
        added = torch.zeros(n, *sides, features, dtype=dtype, device=gradient.device).permute(0, 3, 1, 2)
        down, across = (
            stride * torch.arange(count, device=gradient.device) - padding for count in gradient.shape[2:]
        )
        for row, column in product(range(size), repeat=2):  # of a window; no two windows share a place
            places = (down + row)[:, None] * width + (across + column)
            part = added[:, :, row::stride, column::stride][:, :, : len(down), : len(across)]
            part += gradient * (chosen == places)
        added = added[:, :, padding : padding + height, padding : padding + width].to(gradient.dtype)
        return added.contiguous(memory_format=torch.channels_last), None, None, None
