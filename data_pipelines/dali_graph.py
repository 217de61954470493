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
def view_graph(views, sources, size, normalize, device, fast):
    images = [fn.external_source(name=f"encoded{number}") for number in range(max(sources) + 1)]
    # To decode for each of two views what it shows takes longer than to decode the whole once for both. That
    # the number of views decides, not of those of a source, keeps the ranks out of it.
    how = "exact" if not fast else "decode region" if len(views) == 1 else "in place"
    if how != "decode region":
        images = [fn.decoders.image(image, device=_decoder(), output_type=types.RGB) for image in images]
    return tuple(
        one_view(images[sources[number]], number, view, size, normalize, device, how)
        for number, view in enumerate(views)
    )


def one_view(image, number, view, size, normalize, device, how):
    def argument(name):
        return fn.external_source(name=f"{name}{number}")

    image = cropped(image, argument("anchor"), argument("shape"), size, how)
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


def cropped(image, anchor, shape, size, how):
    filter = {"size": [size, size], "interp_type": types.INTERP_LINEAR, "antialias": True}
    if how == "in place":
        start = fn.cast(anchor, dtype=types.FLOAT)
        return fn.resize(image, roi_start=start, roi_end=start + shape, **filter)
    if how == "decode region":
        options = {"device": _decoder(), "output_type": types.RGB, "axis_names": "HW"}
        return fn.resize(fn.decoders.image_slice(image, anchor, shape, **options), **filter)
    return fn.resize(fn.slice(image, anchor, shape, axis_names="HW"), **filter)


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
