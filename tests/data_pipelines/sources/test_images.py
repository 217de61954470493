"""What goes into a shard is what the loader decodes to the pixels that pillow sees, whatever it came as."""

import io
import struct
import zlib

import numpy as np
import pytest
from nvidia.dali import fn, types
from nvidia.dali.pipeline import pipeline_def
from PIL import Image, ImageOps

from data_pipelines.sources.images import Sums, decode, picture
from tests.helpers.tiny_dataset import pictures, png

RGB = Image.fromarray(pictures(1, 33, 47)[0])
GREY = RGB.convert("L")
RGBA = Image.merge("RGBA", (*RGB.split(), GREY.transpose(Image.Transpose.ROTATE_180)))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png16(values: np.ndarray, colour: int) -> bytes:
    """A PNG of 16 bits, which pillow writes for grey alone. values: uint16 [h, w] or [h, w, channels]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


DEEP = np.asarray(RGB).astype(np.uint16) * 257 - np.asarray(RGB) // 2
KEPT = {
    "jpeg": ("jpg", encoded(RGB, "JPEG")),
    "jpeg, progressive": ("jpg", encoded(RGB, "JPEG", progressive=True, subsampling=0)),
    "jpeg, grey": ("jpg", encoded(GREY, "JPEG")),
    "jpeg, cmyk": ("jpg", encoded(RGB.convert("CMYK"), "JPEG")),
    **{f"jpeg, turned {i}": ("jpg", encoded(RGB, "JPEG", exif=turned(i))) for i in range(2, 9)},
    "jpeg and more behind it": ("jpg", encoded(RGB, "MPO", save_all=True, append_images=[RGB])),
    "png": ("png", png(RGB)),
    "png, turned": ("png", encoded(RGB, "PNG", exif=turned(6))),
    "png, grey and alpha": ("png", png(RGBA.convert("LA"))),
    "png, alpha": ("png", png(RGBA)),
    "png, palette": ("png", encoded(RGB.quantize(16), "PNG", transparency=3)),
    "png, 1 bit": ("png", png(GREY.convert("1"))),
    "png, 16 bits grey": ("png", png16(DEEP[:, :, 0], 0)),
    "png, 16 bits": ("png", png16(DEEP, 2)),
    "webp": ("webp", encoded(RGB, "WEBP")),
    "webp, alpha": ("webp", encoded(RGBA, "WEBP", lossless=True, exact=True)),
    "webp, animated": ("webp", encoded(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(90)])),
    "bmp": ("bmp", encoded(RGB, "BMP")),
    "bmp, palette": ("bmp", encoded(RGB.quantize(16), "BMP")),
    "ppm": ("ppm", encoded(RGB, "PPM")),
    "jpeg 2000": ("jp2", encoded(RGB, "JPEG2000")),
}
REWRITTEN = {
    "gif": encoded(RGB, "GIF"),
    "gif, animated": encoded(RGB, "GIF", save_all=True, append_images=[RGB.rotate(90)]),
    "tiff": encoded(RGB, "TIFF"),
    "tiff, turned": encoded(RGB, "TIFF", exif=turned(6)),
    "tiff, 16 bits": encoded(Image.fromarray(DEEP[:, :, 0]), "TIFF"),
    "png without its end": png(RGB)[:-12],
}


@pipeline_def(batch_size=1, num_threads=1, device_id=None)
def loader():
    return fn.decoders.image(fn.external_source(name="encoded"), output_type=types.RGB)


def dali(data: bytes) -> np.ndarray:
    """What the loader's decoder makes of an image."""
    pipeline = loader()
    pipeline.build()
    pipeline.feed_input("encoded", [np.frombuffer(data, np.uint8)])
    return np.asarray(pipeline.run()[0].at(0))


def pillow(data: bytes) -> np.ndarray:
    """An image as anyone reads it with pillow, but 16-bit grey, which pillow does not scale."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I"):
        values = np.rint(np.asarray(image) / 257).astype(np.uint8)
        return values[:, :, None].repeat(3, axis=2)
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", KEPT)
def test_what_the_loader_decodes_keeps_its_bytes(name):
    kind, data = KEPT[name]
    made = picture(data, rewrite=False)
    assert (made.kind, made.encoded) == (kind, data)
    assert np.array_equal(made.values, pillow(data))
    assert np.array_equal(made.values, decode(data))
    assert np.abs(made.values.astype(int) - dali(data)).max() <= ("16" in name)


@pytest.mark.parametrize("name", REWRITTEN)
def test_what_it_does_not_decode_becomes_a_png_of_the_same_pixels(name):
    data = REWRITTEN[name]
    made = picture(data)
    assert made.kind == "png"
    assert np.array_equal(made.values, pillow(data))
    assert np.array_equal(dali(made.encoded), made.values)
    with pytest.raises(ValueError, match="is not what the loader decodes; source=folder writes it as PNG"):
        picture(data, rewrite=False)


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 50,000 x 50,000 pixels."""
    data = png(np.zeros((1, 1, 3), np.uint8))
    head = data[12:16] + struct.pack(">II", 50_000, 50_000) + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "an empty file"),
        (b"not an image", "cannot identify it as an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify it as an image"),
        (encoded(RGB, "JPEG")[:-40], "truncated"),
        (png(RGB)[:1000], "truncated"),
        (encoded(RGB, "WEBP")[:-200], "could not create decoder object"),
        (encoded(RGB, "BMP")[:-200], "truncated"),
        (encoded(GREY.convert("F"), "TIFF"), "floating-point"),
        (encoded(Image.fromarray(np.asarray(GREY).astype(np.int32) * 1000), "TIFF"), "32 bits"),
        (bomb(), "exceeds limit of 178956970 pixels"),
    ],
    ids=["empty", "text", "eps", "jpeg", "png", "webp", "bmp", "float", "32 bits", "bomb"],
)
def test_what_is_no_whole_image_says_why(data, why):
    with pytest.raises(Exception, match=why):
        picture(data)


def test_sums_are_exact_on_tall_and_bright_images():
    values = np.full((70_000, 2, 3), 255, np.uint8)
    values[::2, :, 1] = 7
    sums = Sums()
    sums.count(values)
    flat = values.reshape(-1, 3).astype(object)
    assert sums == Sums(140_000, flat.sum(0).tolist(), (flat**2).sum(0).tolist())
