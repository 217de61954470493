"""Images as users have them, decoded exactly or fast: every orientation, kind and shape."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from data_pipelines.dali import in_order
from data_pipelines.dali_pipeline import ImagePipeline, Memory
from data_pipelines.draws import draw
from data_pipelines.image_options import ImageOptions
from data_pipelines.plan import BatchShare, Plan
from data_pipelines.reader import Reader
from data_pipelines.views import Crop, Normalize, Range, View
from tests.helpers.tiny_dataset import image_loader, pictures, png, write_samples

CPU = torch.device("cpu")
VALUES = Normalize(mean=[0.0, 0.0, 0.0], std=[1 / 255, 1 / 255, 1 / 255])  # 0..255, to compare with pixels
CROP = View(crop=Crop(scale=Range(low=0.2, high=1.0)))


def jpeg(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, **options)
    return file.getvalue()


def upright(encoded: bytes) -> np.ndarray:
    """As pillow shows it once its EXIF orientation is obeyed, uint8 [h, w, 3]."""
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def made(views, images: list[bytes], size: int, fast: bool, n: int = 0, sources=None) -> list[np.ndarray]:
    """The views as pixel values, each [n, size, size, 3], drawn for the sizes after rotation."""
    sizes = np.array([upright(image).shape[:2] for image in images])
    draws = [draw(view, 3, np.arange(len(images)) + n, i, sizes) for i, view in enumerate(views)]
    sources = sources or [0] * len(views)
    pipeline = ImagePipeline(views, sources, size, VALUES, len(images), 2, CPU, fast)
    lists = [[np.frombuffer(image, np.uint8) for image in images]] * (max(sources) + 1)
    tensors = pipeline(lists, [sizes] * len(lists), draws)
    return [tensor.permute(0, 2, 3, 1).numpy() for tensor in tensors]


ROTATED = []
for subsampling in (0, 2):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture = Image.fromarray(pictures(1, 211, 317, seed=orientation)[0])
        ROTATED.append(jpeg(picture, exif=exif, subsampling=subsampling, progressive=orientation % 2))


def test_jpeg_decodes_as_pillow_does():
    images = [jpeg(Image.fromarray(pixels)) for pixels in pictures(48)]
    (decoded,) = made([View()], images, 32, False)
    error = np.abs(decoded - np.stack([upright(image) for image in images]))
    assert error.mean() <= 0.01
    assert error.max() <= 2


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_other_png_kinds_become_three_channels(mode):
    images = [png(Image.fromarray(pixels).convert(mode)) for pixels in pictures(4)]
    (decoded,) = made([View()], images, 32, False)
    assert np.array_equal(decoded, np.stack([upright(image) for image in images]))
    if mode in ("L", "LA"):
        assert np.array_equal(decoded[..., :1].repeat(3, axis=-1), decoded)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("view", [CROP, View()], ids=["crop", "central"])
def test_crops_of_every_orientation_are_pillows(view, fast):
    for n in (0, 100, 200):
        sizes = np.array([upright(image).shape[:2] for image in ROTATED])
        drawn = draw(view, 3, np.arange(len(ROTATED)) + n, 0, sizes)
        (decoded,) = made([view], ROTATED, 64, fast, n)
        for values, image, (top, left), (h, w) in zip(
            decoded, ROTATED, drawn.anchor, drawn.shape, strict=True
        ):
            box = Image.fromarray(upright(image)).crop((left, top, left + w, top + h))
            expected = np.asarray(box.resize((64, 64), Image.Resampling.BILINEAR)).astype(float)
            assert np.abs(values - expected).mean() < 0.4
            assert np.abs(values - expected).max() < 4


def test_one_view_made_fast_is_equal():
    for view in (CROP, View()):
        assert np.array_equal(made([view], ROTATED, 64, True), made([view], ROTATED, 64, False))


def test_views_made_fast_are_equal_whichever_share_an_image():
    views, sources = [CROP, View(), CROP], [1, 0, 1]
    assert not np.array_equal(*made([CROP, CROP], ROTATED, 64, False))
    for exact, fast in zip(
        *(made(views, ROTATED, 64, how, 0, sources) for how in (False, True)), strict=True
    ):
        assert np.array_equal(exact, fast)


def odd_images() -> list[bytes]:
    rgb = {size: Image.fromarray(pictures(1, *size)[0]) for size in [(1, 1), (1, 90), (90, 1), (7, 600)]}
    large = Image.fromarray(pictures(1, 300, 200)[0])
    odd = [png(image) for image in rgb.values()] + [jpeg(image) for image in rgb.values()]
    odd += [png(large.convert(mode)) for mode in ("L", "1", "P", "LA", "RGBA")]
    return odd + [jpeg(large.convert(mode)) for mode in ("L", "CMYK")] + [jpeg(large), ROTATED[5]]


@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize("size", [8, 32, 224])
def test_images_of_any_kind_and_shape_make_batches(tmp_path, decode, size):
    odd = odd_images()
    labels = [-1 if i % 3 else i % 10 for i in range(len(odd))]
    samples = [(image, *upright(image).shape[:2], label) for image, label in zip(odd, labels, strict=True)]
    reader = Reader(write_samples(tmp_path, {"train": samples}, 5), "train")
    images = ImageOptions(size, VALUES, 2, CPU, decode=decode)
    lines: list[str] = []
    ((views, label),) = in_order(reader, images, np.arange(len(odd)), len(odd), lines.append)
    assert label.tolist() == labels
    for values, image in zip(views.permute(0, 2, 3, 1).numpy(), odd, strict=True):
        pixels = upright(image)
        side = min(pixels.shape[:2])
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        box = Image.fromarray(pixels[top : top + side, left : left + side])
        expected = np.asarray(box.resize((size, size), Image.Resampling.BILINEAR)).astype(float)
        assert np.abs(values - expected).mean() < 2  # of 1 bit, dithered and shrunk 25 times: 1.6
    plan = Plan(0, reader.shards, 2)
    views, share = [CROP, CROP], BatchShare(8)
    loader = image_loader(reader, plan, images, views, share, warn=lines.append, start=0, stop=64)
    for batch in loader:
        assert batch.label.tolist() == [labels[i] for i in batch.ids[0]]  # -1 is none, and is handed on
        for view in batch.views:
            assert view.shape == (8, 3, size, size)
            assert view.isfinite().all()
    loader.close()
    reader.close()
    assert lines == []


def test_memory_is_used_again_only_when_nothing_refers_to_it():
    memory, array = Memory(), np.arange(60.0).reshape(3, 20)
    first = torch.from_numpy(memory.copy(array))
    part, place = first.permute(1, 0)[2:5], first.data_ptr()
    del first
    second = torch.from_numpy(memory.copy(-array))
    assert second.data_ptr() != place
    assert torch.equal(part, torch.from_numpy(array).permute(1, 0)[2:5])
    del part
    assert torch.from_numpy(memory.copy(array)).data_ptr() == place
    assert torch.equal(second, torch.from_numpy(-array))
