"""MoCo-v2's augmentation with PIL, operation by operation as torchvision 0.28 does it on PIL images.

Written here because torchvision cannot be imported beside the CPU build of torch. Each function names its
counterpart; random numbers come from torch, as there, so that their cost is the same.
"""

import math
import random

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def moco_view(image: Image.Image, size: int = 32) -> torch.Tensor:
    """`aug_plus` of facebookresearch/moco main_moco.py; float32 [3, size, size]."""
    image = random_resized_crop(image, size, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3))
    if torch.rand(1).item() < 0.8:  # RandomApply
        image = color_jitter(image, 0.4, 0.4, 0.4, 0.1)
    if torch.rand(1).item() < 0.2:  # RandomGrayscale
        grey = np.array(image.convert("L"), dtype=np.uint8)
        image = Image.fromarray(np.dstack([grey, grey, grey]), "RGB")
    if torch.rand(1).item() < 0.5:  # moco.loader.GaussianBlur
        image = image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))
    if torch.rand(1).item() < 0.5:  # RandomHorizontalFlip
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return normalized(image)


def plain_view(image: Image.Image, size: int = 32) -> torch.Tensor:
    """CenterCrop of the shorter side, and Resize where the image is of another size."""
    side = min(image.size)
    if image.size != (size, size):
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize(
            (size, size), Image.Resampling.BILINEAR
        )
    return normalized(image)


def random_resized_crop(image: Image.Image, size: int, scale: tuple, ratio: tuple) -> Image.Image:
    """RandomResizedCrop: get_params, then functional.resized_crop, bilinear."""
    width, height = image.size
    log_ratio = torch.log(torch.tensor(ratio))
    for _ in range(10):
        area = height * width * torch.empty(1).uniform_(*scale).item()
        aspect = torch.exp(torch.empty(1).uniform_(*log_ratio.tolist())).item()
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = torch.randint(0, height - h + 1, size=(1,)).item()
            left = torch.randint(0, width - w + 1, size=(1,)).item()
            break
    else:  # the central crop of the nearest allowed ratio
        w, h = round(min(width, height * ratio[1])), round(min(height, width / ratio[0]))
        top, left = (height - h) // 2, (width - w) // 2
    box = image.crop((left, top, left + w, top + h))
    return box.resize((size, size), Image.Resampling.BILINEAR)


def color_jitter(image: Image.Image, brightness: float, contrast: float, saturation: float, hue: float):
    """ColorJitter: the four in a random order."""
    order = torch.randperm(4)
    factors = [float(torch.empty(1).uniform_(1 - x, 1 + x)) for x in (brightness, contrast, saturation)]
    shift = float(torch.empty(1).uniform_(-hue, hue))
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for number in order:
        image = adjust_hue(image, shift) if number == 3 else enhancers[number](image).enhance(factors[number])
    return image


def adjust_hue(image: Image.Image, shift: float) -> Image.Image:
    """_functional_pil.adjust_hue: the hue channel of HSV, turned by a share of the circle."""
    h, s, v = image.convert("HSV").split()
    hue = np.array(h, dtype=np.uint8)
    hue += np.array(shift * 255).astype(np.int32).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(hue, "L"), s, v)).convert("RGB")


def normalized(image: Image.Image) -> torch.Tensor:
    """ToTensor and Normalize."""
    pixels = torch.from_numpy(np.array(image, np.uint8, copy=True)).view(image.height, image.width, 3)
    tensor = pixels.permute(2, 0, 1).contiguous().to(dtype=torch.float32).div(255)
    mean, std = torch.as_tensor(MEAN), torch.as_tensor(STD)
    return tensor.clone().sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
