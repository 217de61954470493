"""What DALI does with images: one graph, on CPU or GPU.

DALI decides nothing here: crops, colour factors, blur widths and flips come in as arguments, one a
sample, so a batch is a pure function of bytes and draws.
"""

from nvidia.dali import Pipeline, fn, math, types
from nvidia.dali.pipeline import pipeline_def

from data_pipelines.spec import View


def arguments(view: View) -> list[str]:
    """The fields of `Draws` that the graph of a view reads."""
    names = ["anchor", "shape"]
    if view.jitter:
        names += ["brightness", "contrast", "saturation", "hue"]
    elif view.grayscale:
        names += ["saturation"]
    return names + ["sigma"] * bool(view.blur) + ["flip"] * bool(view.flip)


@pipeline_def
def header_graph():
    return fn.peek_image_shape(fn.external_source(name="encoded"))


@pipeline_def
def decode_graph():
    return fn.decoders.image(fn.external_source(name="encoded"), device=_decoder(), output_type=types.RGB)


def _decoder() -> str:
    return "cpu" if Pipeline.current().device_id is None else "mixed"


@pipeline_def(enable_conditionals=True)
def view_graph(views, sources, size, normalize, device, region):
    images = [decoded(number, region) for number in range(max(sources) + 1)]
    return tuple(
        one_view(images[sources[number]], number, view, size, normalize, device, region)
        for number, view in enumerate(views)
    )


def decoded(number, region):
    encoded = fn.external_source(name=f"encoded{number}")
    if not region:
        return fn.decoders.image(encoded, device=_decoder(), output_type=types.RGB)
    box = fn.external_source(name=f"start{number}"), fn.external_source(name=f"extent{number}")
    return fn.decoders.image_slice(encoded, *box, axis_names="HW", device=_decoder(), output_type=types.RGB)


def one_view(image, number, view, size, normalize, device, region):
    def argument(name):
        return fn.external_source(name=f"{name}{number}")

    anchor, shape, roi = argument("anchor"), argument("shape"), {}
    if region:
        start = fn.cast(anchor, dtype=types.FLOAT)
        roi = {"roi_start": start, "roi_end": start + shape}
    else:
        image = fn.slice(image, anchor, shape, axis_names="HW")
    image = fn.resize(image, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True, **roi)
    if view.jitter:
        image = fn.brightness_contrast(image, brightness=argument("brightness"))
        image = contrasted(image, argument("contrast"), device)
        image = twisted(image, saturation=argument("saturation"), hue=argument("hue"))
    elif view.grayscale:
        image = twisted(image, saturation=argument("saturation"))
    if view.blur:
        sigma = argument("sigma")
        if sigma > 0:
            image = fn.gaussian_blur(image, sigma=sigma)
    return fn.crop_mirror_normalize(
        image,
        mirror=argument("flip") if view.flip else 0,
        dtype=types.FLOAT,
        output_layout="HWC",
        mean=[255 * m for m in normalize.mean],
        std=[255 * s for s in normalize.std],
        device=device,
    )


def contrasted(image, contrast, device):
    """Contrast about the image's mean grey, as torchvision's; DALI's own turns about a constant."""
    grey = fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)
    mean = fn.cast(fn.reductions.mean(grey), dtype=types.FLOAT)
    if device == "cpu":  # twice as fast as the same in arithmetic
        return fn.brightness_contrast(image, contrast=contrast, contrast_center=mean)
    # What was computed on a GPU is not to be had as an argument of an operator.
    return fn.cast(mean + contrast * (image - mean), dtype=types.UINT8)


def twisted(image, **factors):
    """Saturation and hue, float32 in 0..255: rounding to whole values takes the operator twice as long."""
    return math.min(math.max(fn.color_twist(image, **factors, dtype=types.FLOAT), 0.0), 255.0)
