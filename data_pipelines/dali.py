"""Encoded bytes and draws -> tensors: one DALI graph, on CPU or GPU.

DALI decides nothing here: crops, colour factors, blur widths and flips come in as arguments, one a
sample, so a batch is a pure function of bytes and draws.
"""

from collections.abc import Iterator

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, math, types
from nvidia.dali.pipeline import pipeline_def
from nvidia.dali.tensors import TensorCPU, TensorListCPU

from data_pipelines.draws import Draws
from data_pipelines.spec import Normalize, View


class Undecodable(Exception):
    """Some images of a batch cannot be decoded; `slots[i]` lists them for the i-th list of images."""

    def __init__(self, slots: list[list[int]]):
        super().__init__(slots)
        self.slots = slots


class ImagePipeline:
    """Decodes images and makes their views.

    Args:
        views: what becomes of the images, one output a view.
        sources: for each view, which of the lists of encoded images it is made from.
        size: height and width of the output, pixels.
        normalize: mean and standard deviation, a number a channel, of pixels in [0, 1].
        batch: most images in a call.
        threads: of the CPU.
        device: "cpu" or "cuda:N".
    """

    def __init__(
        self,
        views: list[View],
        sources: list[int],
        size: int,
        normalize: Normalize,
        batch: int,
        threads: int,
        device: torch.device,
    ):
        self.views, self.sources = views, sources
        self.options = {
            "batch_size": batch,
            "num_threads": threads,
            "device_id": device.index or 0 if device.type == "cuda" else None,
            "prefetch_queue_depth": 1,
            "exec_async": False,
            "exec_pipelined": False,
        }
        self.size, self.normalize, self.device = size, normalize, device
        self.pipeline, self.headers = self._build(), self._build_headers()

    def _build(self) -> Pipeline:
        pipeline = view_graph(
            self.views,
            self.sources,
            self.size,
            self.normalize,
            "gpu" if self.device.type == "cuda" else "cpu",
            **self.options,
        )
        pipeline.build()
        return pipeline

    def _build_headers(self) -> Pipeline:
        pipeline = header_graph(**{**self.options, "device_id": None})
        pipeline.build()
        return pipeline

    def __call__(
        self, encoded: list[list[np.ndarray]], sizes: list[np.ndarray], draws: list[Draws]
    ) -> list[torch.Tensor]:
        """Makes the views of one batch.

        Args:
            encoded: for each source a list of n encoded images, uint8 arrays.
            sizes: for each source the heights and widths that they should have, int [n, 2].
            draws: for each view its n draws.

        Returns:
            For each view a float32 tensor [n, 3, size, size] in channels_last memory.

        Raises:
            Undecodable: naming the slots, also of images of another size; the next call works again.
        """
        lists = [TensorListCPU([TensorCPU(image) for image in images]) for images in encoded]
        agree = [self._headers_agree(*pair) for pair in zip(lists, sizes, strict=True)]
        if not all(agree):
            raise Undecodable([self._headers_apart(*pair) for pair in zip(encoded, sizes, strict=True)])
        for number, images in enumerate(lists):
            self.pipeline.feed_input(f"encoded{number}", images)
        for number, (view, d) in enumerate(zip(self.views, draws, strict=True)):
            for name in arguments(view):
                self.pipeline.feed_input(f"{name}{number}", np.ascontiguousarray(getattr(d, name)))
        try:
            outputs = self.pipeline.run()
        except RuntimeError:
            # DALI's pipeline is dead after a failure and does not always say which image it was.
            self.pipeline = self._build()
            slots = [
                [slot for slot, made in enumerate(self._alone(decode_graph, images)) if made is None]
                for images in encoded
            ]
            if not any(slots):
                raise
            raise Undecodable(slots) from None
        return [self._tensor(output) for output in outputs]

    def _headers_agree(self, images: TensorListCPU, sizes: np.ndarray) -> bool:
        """Whether all headers can be read and say the sizes expected.

        Asked before anything is decoded: among several images, one whose header cannot be read makes DALI
        2.4's decoder write over its own memory, and the process dies some time later. And a damaged header
        that speaks of 50,000 x 50,000 pixels gets no memory. It costs 4 us an image.
        """
        self.headers.feed_input("encoded", images)
        try:
            (shapes,) = self.headers.run()
        except RuntimeError:
            self.headers = self._build_headers()
            return False
        return np.array_equal(np.asarray(shapes.as_tensor())[:, :2], sizes)

    def _headers_apart(self, images: list[np.ndarray], sizes: np.ndarray) -> list[int]:
        """The slots of images whose header cannot be read or says another size."""
        found = [(0, 0) if made is None else made.at(0)[:2] for made in self._alone(header_graph, images)]
        return np.flatnonzero((np.array(found) != sizes).any(axis=1)).tolist()

    def _alone(self, graph, images: list[np.ndarray]) -> Iterator:
        """What a graph makes of each image alone, a batch of one; None where it fails."""
        pipeline = None
        for image in images:
            if pipeline is None:
                pipeline = graph(**{**self.options, "batch_size": 1, "num_threads": 1})
                pipeline.build()
            pipeline.feed_input("encoded", [image])
            try:
                (made,) = pipeline.run()
            except RuntimeError:
                made = pipeline = None
            yield made

    def _tensor(self, output) -> torch.Tensor:
        # A copy: DALI writes its next batch into the same memory. On the CPU by numpy, in this thread: torch
        # would wake its pool, whose waiting takes ten times the processor time of the copy.
        if self.device.type == "cpu":
            tensor = torch.from_numpy(np.array(output.as_tensor()))
        else:
            tensor = torch.from_dlpack(output.as_tensor()).clone()
        return tensor.permute(0, 3, 1, 2)  # made as NHWC, which is channels_last without a move


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
def view_graph(views, sources, size, normalize, device):
    images = [
        fn.decoders.image(
            fn.external_source(name=f"encoded{number}"), device=_decoder(), output_type=types.RGB
        )
        for number in range(max(sources) + 1)
    ]
    return tuple(
        one_view(images[sources[number]], number, view, size, normalize, device)
        for number, view in enumerate(views)
    )


def one_view(image, number, view, size, normalize, device):
    def argument(name):
        return fn.external_source(name=f"{name}{number}")

    image = fn.slice(image, argument("anchor"), argument("shape"), axis_names="HW")
    image = fn.resize(image, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
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
