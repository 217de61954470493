"""Views of decoded images in batched torch operations, from the draws that DALI's graphs take.

Every operation is one of single values, or a sum of whole numbers: sums over pixels are written as loops over
taps, not as matrix products, whose order of summation may depend on the batch. So a sample's bits depend
neither on its batch nor on its slot. Steps that are rounded to whole values in `dali_graph` are rounded here.
"""

import numpy as np
import torch

from data_pipelines.draws import Draws, windows
from data_pipelines.hsv import LUMA, thirds_and_steps
from data_pipelines.pinned import on_device
from data_pipelines.views import Normalize, View

# DALI's `color_twist` has three digits.
TO_YIQ = np.array([LUMA, [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])


def make_view(
    store: torch.Tensor, ids: np.ndarray, view: View, draws: Draws, size: int, normalize: Normalize
) -> torch.Tensor:
    """One view of n samples: float32 [n, 3, size, size], channels_last, on the device of the store.

    Args:
        store: uint8 [images, height, width, 3].
        ids: int64 [n], images of the store.
        draws: of the n samples, as `draw` returns them for this view.
    """
    images = resized(store, ids, draws, size)
    if view.jitter or view.grayscale:
        images = coloured(images, view, draws)
    if view.blur and len(rows := np.flatnonzero(draws.sigma > 0)):
        whole = not (view.jitter or view.grayscale)  # then DALI rounds after each pass
        weights = windows(draws.sigma[rows], view.blur.sigma.high)
        images = replaced(images, rows, blurred(images[on(images, rows)], weights, whole))
    mean, std = (
        on(images, np.float32(255) * np.array(values, np.float32))
        for values in (normalize.mean, normalize.std)
    )
    return ((images - mean) / std).permute(0, 3, 1, 2)


def on(like: torch.Tensor, values: np.ndarray) -> torch.Tensor:
    """An array on the device of a tensor."""
    return on_device(values, like.device)


def replaced(images: torch.Tensor, rows: np.ndarray, values: torch.Tensor) -> torch.Tensor:
    """The images with other values in some rows."""
    return values if len(rows) == len(images) else images.index_copy(0, on(images, rows), values)


# ---- crop and resize ---------------------------------------------------------------------------------


def taps(
    anchor: np.ndarray, length: np.ndarray, mirrored: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels of a line an output pixel is made of: places int64 and weights float32, [taps, n, size].

    A triangular filter, as wide as the scale where the line shrinks; beyond the crop stands its border pixel.

    Args:
        anchor: int [n], where the crop begins.
        length: int [n], pixels of the crop.
        mirrored: int [n], 1 where the line is read backwards.
    """
    scale = length[:, None] / size
    centre = (np.arange(size) + 0.5) * scale - 0.5
    centre = np.where(mirrored[:, None] == 1, length[:, None] - 1 - centre, centre)
    radius = np.maximum(scale, 1.0)
    first = np.floor(centre - radius) + 1
    place = first + np.arange(int(np.ceil(2 * radius.max())))[:, None, None]
    weights = np.maximum(1 - np.abs(place - centre) / radius, 0)
    total = np.add.accumulate(weights)[-1]  # in the order of the taps: those of weight 0 change no bit
    inside = np.clip(place, 0, length[:, None] - 1) + anchor[:, None]
    return inside.astype(np.int64), (weights / total).astype(np.float32)


def resized(store: torch.Tensor, ids: np.ndarray, draws: Draws, size: int) -> torch.Tensor:
    """The crops at their new size, of whole values: float32 [n, size, size, 3]."""
    upright = np.zeros_like(draws.flip)
    rows = taps(draws.anchor[:, 0], draws.shape[:, 0], upright, size)
    columns = taps(draws.anchor[:, 1], draws.shape[:, 1], draws.flip, size)
    lines = combined(store, ids, *rows).transpose(1, 2)  # [n, width, size, 3]
    return combined(lines, np.arange(len(ids)), *columns).transpose(1, 2).contiguous().round()


def combined(images: torch.Tensor, ids: np.ndarray, places: np.ndarray, weights: np.ndarray) -> torch.Tensor:
    """Weighted sums of lines of images [m, lines, width, 3]: float32 [n, size, width, 3]."""
    which, at, factors = on(images, ids[:, None]), on(images, places), on(images, weights)[..., None, None]
    result = images[which, at[0]].float() * factors[0]
    for place, factor in zip(at[1:], factors[1:], strict=True):
        result += images[which, place].float() * factor
    return result


# ---- colour ------------------------------------------------------------------------------------------


def coloured(images: torch.Tensor, view: View, draws: Draws) -> torch.Tensor:
    """Jitter and grayscale of whole values, as `dali_graph.coloured`."""
    factors = (draws.brightness, draws.contrast, draws.saturation)
    jittered = np.any([*(factor != 1 for factor in factors), draws.hue != 0], axis=0)
    if not view.jitter:
        jittered = np.zeros_like(jittered)
    gray = draws.saturation == 0
    if len(rows := np.flatnonzero(jittered)):
        part = images[on(images, rows)]
        brightness, contrast = (on(images, f[rows])[:, None, None, None] for f in factors[:2])
        part = whole_values(part * brightness)
        mean = mean_grey(part)
        images = replaced(images, rows, whole_values((part - mean) * contrast + mean))
    if len(rows := np.flatnonzero(jittered & ~gray)):
        part, twist = images[on(images, rows)], hsv if view.hue == "hsv" else yiq
        images = replaced(images, rows, twist(part, draws.saturation[rows], draws.hue[rows]))
    if len(rows := np.flatnonzero(gray)):
        part = images[on(images, rows)]
        images = replaced(images, rows, grey(part).round().expand(part.shape))
    return images


def whole_values(images: torch.Tensor) -> torch.Tensor:
    return images.clamp(0, 255).round()


def grey(images: torch.Tensor) -> torch.Tensor:
    red, green, blue = (weight * images[..., channel, None] for channel, weight in enumerate(LUMA))
    return red + green + blue


def mean_grey(images: torch.Tensor) -> torch.Tensor:
    """The mean of each image's grey, rounded a pixel before: [n, 1, 1, 1]. Whole numbers add up exactly."""
    values = grey(images).round().int()
    total = values.sum(dim=(1, 2, 3), keepdim=True)
    return (total.double() / values[0].numel()).float()


def yiq(images: torch.Tensor, saturation: np.ndarray, degrees: np.ndarray) -> torch.Tensor:
    """Saturation and hue in YIQ, in 0..255."""
    angle = np.deg2rad(degrees.astype(np.float64))
    turns = np.tile(np.eye(3), (len(angle), 1, 1))
    turns[:, 1, 1] = turns[:, 2, 2] = saturation * np.cos(angle)
    turns[:, 1, 2], turns[:, 2, 1] = saturation * np.sin(angle), -saturation * np.sin(angle)
    matrices = on(images, (np.linalg.inv(TO_YIQ) @ turns @ TO_YIQ).astype(np.float32))[:, None, None]
    red, green, blue = (images[..., channel, None] * matrices[..., channel] for channel in range(3))
    return (red + green + blue).clamp(0, 255)


def hsv(images: torch.Tensor, saturation: np.ndarray, degrees: np.ndarray) -> torch.Tensor:
    """Saturation and hue in HSV, in 0..255, by the formula of `hsv.SaturationAndHue`."""
    factor = on(images, saturation)[:, None, None, None]
    thirds, steps = thirds_and_steps(degrees)
    images = (images * factor + grey(images) * (1 - factor)).clamp(0, 255)
    bottom, top = images.amin(-1, keepdim=True), images.amax(-1, keepdim=True)
    red, green, blue = images.split(1, dim=-1)
    mid = torch.maximum(torch.minimum(red, green), torch.minimum(torch.maximum(red, green), blue))
    reach = (top - bottom) * on(images, steps)[:, None, None, None]
    rising = images.roll(-1, -1) - images.roll(1, -1)
    turned = images * 2 - mid - torch.where(rising < 0, -reach, reach)
    turned = torch.maximum(torch.minimum(turned, top), bottom)
    channels = (np.arange(3)[None] - thirds[:, None]) % 3  # channel c goes to c + third
    return turned.gather(-1, on(images, channels)[:, None, None].expand(turned.shape))


# ---- blur --------------------------------------------------------------------------------------------


def blurred(images: torch.Tensor, weights: np.ndarray, whole: bool) -> torch.Tensor:
    """Filters columns, then rows, by windows [n, 2 r + 1]; the border is mirrored and not repeated."""
    radius, size = weights.shape[1] // 2, images.shape[1]
    period = max(1, 2 * (size - 1))
    mirrored = (np.arange(size) + np.arange(-radius, radius + 1)[:, None]) % period
    at = on(images, np.minimum(mirrored, period - mirrored) if size > 1 else 0 * mirrored)
    factors = on(images, weights.T)[:, :, None, None, None]
    for axis in (1, 2):
        result = images.index_select(axis, at[0]) * factors[0]
        for place, factor in zip(at[1:], factors[1:], strict=True):
            result += images.index_select(axis, place) * factor
        images = result.round() if whole else result
    return images
