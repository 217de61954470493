"""The layers that encoders are made of, and the folding of an image into patches and back."""

from collections.abc import Callable

from torch import Tensor, nn

Norm = Callable[[int], nn.Module]  # features -> the norm of a layer of so many


def convolution(before: int, after: int, kernel: int, stride: int, padding: int, norm: Norm) -> nn.Sequential:
    """Convolution without bias, norm, ReLU: [n, before, H, W] -> [n, after, H', W']."""
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, padding, bias=False), norm(after), nn.ReLU()
    )


def dense(before: int, after: int, norm: Norm) -> nn.Sequential:
    """Fully connected layer without bias, norm, ReLU: [n, before] -> [n, after]."""
    return nn.Sequential(nn.Linear(before, after, bias=False), norm(after), nn.ReLU())


def patch_grid(size: int, patch: int) -> int:
    """Patches along a side of an image of `size` pixels, each `patch` pixels wide and half over the next.

    Raises:
        ValueError: they do not cover the image.
    """
    step = patch // 2
    if size < patch or size % step:
        raise ValueError(
            f"size={size} cannot be folded into patches of {patch} pixels, {step} apart; "
            f"a multiple of {step} is needed, at least {patch}"
        )
    return (size - patch) // step + 1


def fold(images: Tensor, patch: int) -> Tensor:
    """Images [n, C, S, S] -> their patches [n·M·M, C, patch, patch], half over each other.

    The patches of an image are consecutive, row by row, so a group of images stays a group of rows.
    """
    step = patch // 2
    patches = images.unfold(2, patch, step).unfold(3, patch, step)  # [n, C, M, M, patch, patch]
    rows = patches.permute(0, 2, 3, 4, 5, 1).reshape(-1, patch, patch, images.shape[1])
    return rows.permute(0, 3, 1, 2)  # channels last in memory


def refold(features: Tensor, side: int) -> Tensor:
    """Features of patches [n·side·side, C, 1, 1] -> the map of each image [n, C, side, side]."""
    return features.flatten(1).unflatten(0, (-1, side, side)).permute(0, 3, 1, 2)
