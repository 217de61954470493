"""Which images are to blame where DALI fails: by its verdict on the CPU, on each image alone.

A batch can fail for any reason: memory or threads that are lacking, a GPU, a mistake in a graph. And a single
image can too: DALI's decoders name lacking memory no more than damage ("Failed to decode sample #0 :"). So
what fails alone is compared with a sound image of the same size.
"""

import io
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from nvidia.dali import Pipeline
from nvidia.dali.tensors import TensorListCPU
from PIL import Image

from data_pipelines.common.shortage import shortage

CODECS = (b"\xff\xd8", "JPEG", 65_500), (b"RIFF", "WEBP", 16_383)  # first bytes, name, most pixels a side
ROUNDS = 3
DECODED = (
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
    "BMP",
    "DIB",
    "PPM",
    "JPEG2000",
)  # formats that pillow is asked about


class Alone:
    """Runs a graph, which reads "encoded", on single images, on the CPU in one thread."""

    def __init__(self, graph: Callable[..., Pipeline]):
        self.graph = graph
        self.pipeline: Pipeline | None = None

    def __call__(self, image: np.ndarray) -> TensorListCPU:
        """The graph's first output. Raises whatever DALI raises; the next call works again."""
        pipeline, self.pipeline = self.pipeline, None  # a failure leaves it unusable
        if pipeline is None:
            one = {"batch_size": 1, "num_threads": 1, "device_id": None, "prefetch_queue_depth": 1}
            pipeline = self.graph(**one, exec_async=False, exec_pipelined=False)
            pipeline.build()
        pipeline.feed_input("encoded", [image])
        output = pipeline.run()[0]
        self.pipeline = pipeline
        return output


def output_or_none(alone: Alone, image: np.ndarray, size: np.ndarray) -> TensorListCPU | None:
    """The output for an image, uint8 [bytes]; None where the image itself cannot be read.

    It is the image's fault if it fails, while a sound image of its height and width (`size`) succeeds with
    memory to spare, and fails again, `ROUNDS` times in turn: once can be chance, since what is free changes
    with each call (a thread's arena takes 64 MB of addresses at once).

    Raises:
        Exception: it fails for another reason, such as lack of memory; this is what DALI raised.
    """
    try:
        return alone(image)
    except Exception as failure:
        # Damage can make a decoder ask for any amount of memory, but pillow then sees the damage too.
        if shortage(failure) and _pillow_decodes(image):
            raise
    sound = _sound(image, size)
    for _ in range(ROUNDS):
        spare = np.empty(2 * (image.nbytes + 3 * int(np.prod(size))), np.uint8)  # twice what the image takes
        alone(sound)
        del spare
        with suppress(Exception):
            return alone(image)
    return None


def damaged(
    graph: Callable[..., Pipeline],
    images: list[np.ndarray],
    sizes: np.ndarray,
    size_of: Callable[[TensorListCPU], Sequence[int]],
) -> list[int]:
    """The slots of images that cannot be read, or have another size. Raises as `output_or_none`.

    Args:
        graph: reads "encoded".
        images: uint8 [bytes] each.
        sizes: the heights and widths that they should have, int [n, 2].
        size_of: the graph's first output for an image -> its height, width, …
    """
    alone, slots = Alone(graph), []
    for slot, (image, size) in enumerate(zip(images, sizes, strict=True)):
        output = output_or_none(alone, image, size)
        if output is None or list(size_of(output)[:2]) != size.tolist():
            slots.append(slot)
    return slots


def size_of_pixels(output: TensorListCPU) -> Sequence[int]:
    return output[0].shape()


def size_in_header(output: TensorListCPU) -> Sequence[int]:
    return np.asarray(output[0]).tolist()


def _sound(image: np.ndarray, size: np.ndarray) -> np.ndarray:
    """A sound image of the codec that an image seems to have, or a PNG."""
    height, width = (int(side) for side in size)
    first = image[:4].tobytes()
    codecs = (name for start, name, most in CODECS if first.startswith(start) and max(height, width) <= most)
    file = io.BytesIO()
    # A progressive JPEG takes more memory than any other.
    Image.new("RGB", (width, height)).save(file, next(codecs, "PNG"), progressive=True)
    return np.frombuffer(file.getvalue(), np.uint8)


def _pillow_decodes(image: np.ndarray) -> bool:
    """Whether pillow decodes an image, or cannot for lack of memory."""
    try:
        Image.init()
        formats = [name for name in DECODED if name in Image.OPEN]
        with Image.open(io.BytesIO(image.tobytes()), formats=formats) as opened:
            opened.load()
    except Exception as error:  # pillow raises nearly anything
        return shortage(error) is not None
    return True
