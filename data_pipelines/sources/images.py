"""Encoded images of unknown origin -> images that the loader decodes to the pixels that they hold.

Two decoders try each image: pillow, which names what is wrong with a damaged image and survives it, and then
DALI, which decodes in training. Where both agree the bytes are kept; where only pillow knows the format, the
pixels are encoded again as PNG.

Measured (pillow 13.0, DALI 2.4, CPU): equal for JPEG (grey, CMYK, progressive, every EXIF orientation), PNG
(grey, palette, alpha, 1 bit), WebP (alpha, animated: the first picture), BMP, PPM, JPEG 2000; within 1 of 255
for 16-bit PNG; GIF, AVIF, 1-bit TIFF and a PNG without its end fail in DALI; TIFF of floats comes out wrong.
"""

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

# Formats by pillow's names, and the extensions of their members in a shard. No other format is ever opened:
# some would start another program (EPS).
EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",  # of cameras: a JPEG with further ones behind it
    "PNG": "png",
    "WEBP": "webp",
    "BMP": "bmp",
    "DIB": "bmp",
    "PPM": "ppm",
    "JPEG2000": "jp2",
}
REWRITTEN = ("GIF", "TIFF", "AVIF")

# Extensions of image files; members of a tar are looked for in this order.
_SUFFIXES = "jpg jpeg png webp bmp ppm pgm pbm pnm jp2 jpe jfif j2k dib gif tif tiff avif"
SUFFIXES = tuple(_SUFFIXES.split())

TOLERANCE = 2  # of 255; 16 bits are rounded by one decoder and cut by the other
LARGEST = 1 << 30  # bytes of one encoded image

# PNG is lossless at any level. At 32 pixels, level 1 is the fastest to write and to decode, and 2 % larger
# than level 9; the tar pads members to 512 bytes anyway.
PNG_LEVEL = 1

_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


Colour: TypeAlias = tuple[float, float, float]  # a number a channel: red, green, blue


class Picture(NamedTuple):
    """An image as a shard stores it.

    Args:
        kind: the member's extension, such as "jpg".
        encoded: the member's bytes.
        values: the decoded pixels, uint8 [height, width, 3].
    """

    kind: str
    encoded: bytes
    values: np.ndarray


class Sample(NamedTuple):
    """An image to write.

    Args:
        name: for messages, where it is left out.
        key: of its members in the shard.
        label: None where it is unlabelled.
        load: decodes it; raises nearly anything where it cannot be decoded.
    """

    name: str
    key: str
    label: int | None
    load: Callable[[], Picture]


@dataclass
class Sums:
    """Sums over pixels, per channel, of values 0..255: whole numbers, so that their order does not matter."""

    pixels: int = 0
    total: list[int] = field(default_factory=lambda: [0, 0, 0])
    squares: list[int] = field(default_factory=lambda: [0, 0, 0])

    def count(self, values: np.ndarray) -> None:
        """Adds an image, uint8 [h, w, 3]."""
        for top in range(0, len(values), 4096):  # rows; so many squares still fit into 32 bits
            rows = values[top : top + 4096].reshape(-1, 3 * values.shape[1])
            wide = rows.astype(np.uint16)
            # Rows are added to each other, twenty times as fast as pixels to each other.
            sums = [part.sum(0, dtype=np.uint32).reshape(-1, 3) for part in (rows, wide * wide)]
            total, squares = (part.sum(0, dtype=np.int64).tolist() for part in sums)
            self.add(Sums(rows.size // 3, total, squares))

    def add(self, other: "Sums") -> None:
        self.pixels += other.pixels
        self.total = [a + b for a, b in zip(self.total, other.total, strict=True)]
        self.squares = [a + b for a, b in zip(self.squares, other.squares, strict=True)]

    def mean_and_std(self) -> tuple[Colour, Colour]:
        """Mean and standard deviation per channel, of pixels in [0, 1], over all pixels."""
        red, green, blue = (total / self.pixels / 255 for total in self.total)
        # n·Σx² − (Σx)² in whole numbers loses nothing to cancellation.
        pairs = zip(self.total, self.squares, strict=True)
        stds = [math.sqrt(self.pixels * square - total**2) / self.pixels / 255 for total, square in pairs]
        return (red, green, blue), (stds[0], stds[1], stds[2])


def encode(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 [height, width] or [height, width, 3]."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()


def picture(encoded: bytes, rewrite: bool = True) -> Picture:
    """An image of any format as the shards store it: its bytes, or the same pixels as PNG.

    rewrite: whether the latter is allowed; else such an image is refused.

    Raises ValueError, or whatever pillow raises, for bytes that are no image, are cut short or are too large.
    """
    if len(encoded) > LARGEST:
        raise ValueError(f"{len(encoded):,} bytes, more than {LARGEST:,}")
    kind, values = _decode(encoded)
    if kind in EXTENSIONS and _loader_agrees(encoded, values):
        return Picture(EXTENSIONS[kind], encoded, values)
    if not rewrite:
        raise ValueError(f"this {kind} is not what the loader decodes; source=folder writes it as PNG")
    return Picture("png", encode(values), values)


def decode(encoded: bytes) -> np.ndarray:
    """The whole image as RGB, its EXIF orientation applied and alpha dropped, uint8 [height, width, 3].

    Raises whatever pillow raises for bytes that are no image, are cut short, or have more pixels than
    pillow's limit of 178,956,970.
    """
    return _decode(encoded)[1]


def _decode(encoded: bytes) -> tuple[str, np.ndarray]:
    if not encoded:
        raise ValueError("an empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong and bearable, such as a damaged EXIF block
            with Image.open(io.BytesIO(encoded), formats=_formats()) as image:
                return image.format or "", np.asarray(_upright(image, _rgb(image)))
    except UnidentifiedImageError:
        raise ValueError("cannot identify it as an image") from None


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in (*EXTENSIONS, *REWRITTEN) if name in Image.OPEN)  # AVIF: since pillow 11.3


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; expected 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    # 16 bits of grey, which pillow's own conversion cuts off at 255.
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels have 32 bits; expected 8 or 16")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


def _upright(image: Image.Image, rgb: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block raises nearly anything, and turns nothing
        orientation = 1
    return rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb


def _loader_agrees(encoded: bytes, values: np.ndarray) -> bool:
    """Whether DALI decodes an image that pillow has decoded, to the same size and pixels."""
    pipeline = _loader()
    pipeline.feed_input("encoded", [np.frombuffer(encoded, np.uint8)])
    try:
        decoded, header = pipeline.run()
    except Exception as error:
        _loader.cache_clear()  # a pipeline is dead after a failure
        # Imported here, because only shards of existing image files need DALI.
        from data_pipelines.dali_damage import damaged, size_of_pixels
        from data_pipelines.dali_graph import decode_and_header_graph

        image, size = np.frombuffer(encoded, np.uint8), np.array(values.shape[:2])
        if damaged(decode_and_header_graph, [image], size[None], size_of_pixels):
            return False
        raise MemoryError("DALI decodes it the second time") from error
    decoded, header = np.asarray(decoded.at(0)), np.asarray(header.at(0))
    if decoded.shape != values.shape or (header[:2] != values.shape[:2]).any():
        return False
    if np.array_equal(decoded, values):  # nearly always, and quick
        return True
    return int(np.abs(np.subtract(decoded, values, dtype=np.int16)).max()) <= TOLERANCE


@cache
def _loader() -> Any:
    """A pipeline of one image at a time: among several, a broken header makes DALI 2.4 write over its own
    memory (`dali_pipeline._headers_agree`)."""
    # Imported here, because only shards of existing image files need it.
    from data_pipelines.dali_graph import decode_and_header_graph

    one_image: dict[str, Any] = {
        "batch_size": 1,
        "num_threads": 1,
        "device_id": None,
        "prefetch_queue_depth": 1,
    }
    pipeline = decode_and_header_graph(**one_image, exec_async=False, exec_pipelined=False)
    pipeline.build()
    return pipeline
