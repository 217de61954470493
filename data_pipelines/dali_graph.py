"""DALI's graphs: decoding and augmentation, on CPU or GPU.

DALI draws nothing: crops, colour factors, blur windows and flips are arguments, one a sample, so a batch is a
pure function of bytes and draws.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, math, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import pipeline_def

from data_pipelines.dali_hsv import saturation_and_hue
from data_pipelines.draws import Draws, windows
from data_pipelines.views import Normalize, View


def inputs(view: View, draws: Draws, corner: np.ndarray | int, device: str) -> dict[str, np.ndarray]:
    """The inputs of a view's graph for n samples, arrays [n, ...] by name: no more than the graph reads.

    Args:
        corner: where the decoded part of each image begins, [n, 2] pixels from the top and the left.
        device: "cpu" or "gpu".
    """
    mirrored = draws.flip * draws.shape[:, 1]
    values = {
        "anchor": draws.anchor - corner,
        "shape": draws.shape,
        # Where resizing starts and ends within the crop: from right to left mirrors at no cost.
        "start": np.stack([0 * mirrored, mirrored], axis=1).astype(np.float32),
        "end": np.stack([draws.shape[:, 0], draws.shape[:, 1] - mirrored], axis=1).astype(np.float32),
    }
    if view.jitter:
        factors = {name: getattr(draws, name) for name in ("brightness", "contrast", "saturation", "hue")}
        unchanged = [value == (name != "hue") for name, value in factors.items()]
        values |= factors | {"jittered": ~np.all(unchanged, axis=0)}
    if view.jitter or view.grayscale:
        values["gray"] = draws.saturation == 0
    if view.blur:
        values["sigma"] = draws.sigma
        if device == "cpu":
            values["window"] = windows(draws.sigma, view.blur.sigma.high)
    return values


@pipeline_def
def header_graph() -> DataNode:
    return fn.peek_image_shape(fn.external_source(name="encoded"))


@pipeline_def
def decode_graph() -> DataNode:
    return fn.decoders.image(fn.external_source(name="encoded"), **_decoder())


@pipeline_def
def decode_and_header_graph() -> tuple[DataNode, DataNode]:
    encoded = fn.external_source(name="encoded")
    return fn.decoders.image(encoded, **_decoder()), fn.peek_image_shape(encoded)


def _decoder() -> dict[str, Any]:
    """The decoder's options on the pipeline's device.

    On a GPU, DALI's defaults give a share of each batch to the JPEG engine, whose pixels differ from the
    other decoder's: an image would depend on its batch. And they interpolate chroma otherwise than on a CPU,
    and pin the threads of all pipelines to the same cores.
    """
    options: dict[str, Any] = {"device": "cpu", "output_type": types.RGB}
    if Pipeline.current().device_id is not None:
        options |= {"device": "mixed", "hw_decoder_load": 0.0, "jpeg_fancy_upsampling": True, "affine": False}
    return options


@pipeline_def(enable_conditionals=True)
def view_graph(
    views: Sequence[View],
    sources: Sequence[int],
    size: int,
    normalize: Normalize,
    device: str,
    fast: bool,
) -> tuple[DataNode, ...]:
    images = [decoded(number, fast) for number in range(max(sources) + 1)]
    return tuple(
        one_view(images[sources[number]], number, view, size, normalize, device)
        for number, view in enumerate(views)
    )


def decoded(number: int, fast: bool) -> DataNode:
    encoded = fn.external_source(name=f"encoded{number}")
    options = _decoder()
    if not fast:
        return fn.decoders.image(encoded, **options)
    # The region that all views show together: decoding the region of each of two views takes half as long
    # again.
    corner, extent = (fn.external_source(name=f"{name}{number}") for name in ("corner", "extent"))
    return fn.decoders.image_slice(encoded, corner, extent, axis_names="HW", **options)


def one_view(
    image: DataNode, number: int, view: View, size: int, normalize: Normalize, device: str
) -> DataNode:
    def argument(name: str) -> DataNode:
        return fn.external_source(name=f"{name}{number}")

    image = cut(image, argument("anchor"), argument("shape"), device)
    image = fn.resize(
        image,
        roi_start=argument("start"),
        roi_end=argument("end"),
        size=[size, size],
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )
    image = coloured(image, argument, view, device)
    if view.blur:
        sigma = argument("sigma")
        window = argument("window") if device == "cpu" else None
        if sigma > 0:
            image = blurred(image, sigma, window)
    return fn.crop_mirror_normalize(
        image,
        dtype=types.FLOAT,
        output_layout="HWC",
        mean=[255 * m for m in normalize.mean],
        std=[255 * s for s in normalize.std],
        device=device,
    )


def cut(image: DataNode, anchor: DataNode, shape: DataNode, device: str) -> DataNode:
    if device == "cpu":  # `fn.multi_paste` takes a sixth of the time of `fn.slice`
        region = {"in_anchors": fn.expand_dims(anchor, axes=0), "shapes": fn.expand_dims(shape, axes=0)}
        return fn.multi_paste(image, output_size=shape, **region)
    return fn.slice(image, anchor, shape, axis_names="HW")


def coloured(image: DataNode, argument: Callable[[str], DataNode], view: View, device: str) -> DataNode:
    """Jitter and grayscale; float32 in 0..255 where there is any. What changes nothing is left out."""
    jittered = argument("jittered") if view.jitter else False
    if view.jitter:
        brightness, contrast = argument("brightness"), argument("contrast")
        saturation, hue = argument("saturation"), argument("hue")
        if jittered:
            image = fn.brightness_contrast(image, brightness=brightness)
            image = contrasted(image, contrast, device)
    if view.jitter or view.grayscale:
        gray = argument("gray")
        if gray:
            image = fn.cast(grayscale(image), dtype=types.FLOAT)
        elif jittered:
            image = twisted(image, saturation, hue, view, device)
        else:
            image = fn.cast(image, dtype=types.FLOAT)
    return image


def contrasted(image: DataNode, contrast: DataNode, device: str) -> DataNode:
    """Contrast about the image's mean grey, as in torchvision; DALI's default centre is a constant."""
    grey = fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)
    mean = fn.cast(fn.reductions.mean(grey), dtype=types.FLOAT)
    if device == "cpu":  # twice as fast as the same in arithmetic
        return fn.brightness_contrast(image, contrast=contrast, contrast_center=mean)
    # An operator's argument cannot come from the GPU, where the mean was computed.
    return fn.cast(mean + contrast * (image - mean), dtype=types.UINT8)


def grayscale(image: DataNode) -> DataNode:
    grey = fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)
    return fn.color_space_conversion(grey, image_type=types.GRAY, output_type=types.RGB)


def twisted(image: DataNode, saturation: DataNode, hue: DataNode, view: View, device: str) -> DataNode:
    """Saturation and hue, float32 in 0..255: rounding to whole values makes the operator twice as slow."""
    if view.hue == "hsv":
        return saturation_and_hue(image, saturation, hue, device)
    image = fn.color_twist(image, saturation=saturation, hue=hue, dtype=types.FLOAT)
    return math.min(math.max(image, 0.0), 255.0)


def blurred(image: DataNode, sigma: DataNode, window: DataNode | None) -> DataNode:
    if window is None:
        return fn.gaussian_blur(image, sigma=sigma)
    # Columns, then rows: this takes a fifth of the time of `fn.gaussian_blur`.
    return fn.filter(fn.filter(image, fn.expand_dims(window, axes=1)), fn.expand_dims(window, axes=0))
