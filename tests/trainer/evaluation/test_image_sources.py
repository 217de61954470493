"""Sources of images: equal however they are cut, and against loops."""

import numpy as np
import pytest
import torch

from data_pipelines.common.errors import UserError
from data_pipelines.image_options import ImageOptions
from data_pipelines.reader import Reader
from data_pipelines.views import Normalize
from tests.helpers.tiny_dataset import pictures, write_dataset
from tests.helpers.tiny_extractors import CPU, exact_codec
from trainer.evaluation.image_sources import (
    Blurred,
    Decoded,
    InMemory,
    Reconstructions,
    Split,
    ladder,
)
from trainer.objectives.drawing import as_uint8

COUNT, SIDE = 30, 8


@pytest.fixture(scope="module")
def originals():
    return torch.from_numpy(pictures(COUNT, SIDE, SIDE)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def split(tmp_path_factory, originals):
    root = tmp_path_factory.mktemp("pictures")
    dataset = write_dataset(root, originals.permute(0, 2, 3, 1).numpy(), per_shard=8)
    with Reader(dataset, "train") as reader:
        options = ImageOptions(SIDE, Normalize(), 1, CPU)
        yield Split("test", reader, np.arange(COUNT)[::-1].copy(), options, 4)


def in_parts(source, *sizes):
    starts = np.cumsum([0, *sizes])
    return torch.cat([source.images(int(start), n) for start, n in zip(starts, sizes, strict=False)])


def test_a_split_gives_the_images_at_rest_to_the_bit(split, originals):
    assert torch.equal(split.images(0, COUNT), originals.flip(0))
    assert torch.equal(in_parts(split, 1, 9, 20), originals.flip(0))
    assert split.count == COUNT


def test_every_source_is_a_function_of_an_images_number(split, originals):
    latents = torch.randn(COUNT, 3), torch.randn(COUNT, 3, SIDE, SIDE) / 3
    decoded = Decoded("x", COUNT, exact_codec(), lambda i, n: tuple(z[i : i + n] for z in latents), 7)
    rows = ["test", "reconstruction", "noise_0.3", "noise_1", "blur_2", "blur_4"]
    for source in (*ladder(rows, exact_codec(), split), InMemory("m", originals), decoded):
        whole = source.images(0, COUNT)
        assert whole.dtype == torch.uint8
        assert whole.shape == (source.count, 3, SIDE, SIDE)
        assert torch.equal(whole, in_parts(source, 3, 10, 17))


def test_a_ladder_has_the_rows_that_are_made_of_test_images(split):
    rows = ["noise_0.1", "samples", "blur_4", "gaussian_full", "test", "reconstruction"]
    sources = ladder(rows, exact_codec(), split, (1.0, 2.0), seed=3)
    assert [source.name for source in sources] == ["noise_0.1", "blur_4", "test", "reconstruction"]
    assert (sources[0].scale, sources[0].spread, sources[0].seed) == (0.1, (1.0, 2.0), 3)
    assert sources[1].width == 4
    assert torch.equal(sources[3].images(0, COUNT), sources[2].images(0, COUNT))  # an exact codec


def test_noise_is_the_same_at_every_scale_and_in_units_of_the_spread(split):
    codec = exact_codec()
    clean = torch.cat([decoded for decoded, _ in Reconstructions("r", codec, split).pairs(0, COUNT)])

    def noise(scale, spread, seed=0):
        source = Reconstructions("n", codec, split, scale, spread, seed)
        return torch.cat([decoded for decoded, _ in source.pairs(0, COUNT)]) - clean

    on_w = noise(1.0, (0.0, 1.0))
    assert torch.allclose(noise(0.1, (0.0, 1.0)), 0.1 * on_w, atol=1e-6)
    channels = torch.tensor([0.5, 1.0, 3.0])[:, None, None]
    assert torch.allclose(noise(1.0, (0.0, channels)), channels * on_w, atol=1e-5)
    both = noise(1.0, (1.0, 1.0)) - on_w  # y's noise is another, and one number a channel
    assert torch.allclose(both, both[:, :, :1, :1].expand_as(both), atol=1e-5)
    assert 0.4 < (2 * on_w).std() / 2 < 0.6  # standard normal, halved by the codec's scale of pixels
    assert not torch.allclose(noise(1.0, (0.0, 1.0), seed=1), on_w, atol=0.1)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_a_blur_equals_a_loop_over_pixels(originals, width):
    image = originals[:1]
    blurred = Blurred("b", InMemory("m", image), width).images(0, 1)[0]
    before = (width - 1) // 2
    for channel, row, column in np.ndindex(3, SIDE, SIDE):
        total = 0
        for i in range(width):
            for j in range(width):
                r, c = (min(max(at + k - before, 0), SIDE - 1) for at, k in ((row, i), (column, j)))
                total += image[0, channel, r, c].item()
        assert abs(blurred[channel, row, column].item() - total / width**2) <= 0.5 + 1e-3


def test_uint8_is_the_nearest_and_no_nan():
    levels = torch.arange(256) / 255
    assert as_uint8(levels).tolist() == list(range(256))
    assert as_uint8(torch.tensor([-1.0, 2.0, 0.5001 / 255, 0.4999 / 255])).tolist() == [0, 255, 1, 0]
    assert as_uint8(levels.bfloat16()).dtype == torch.uint8
    with pytest.raises(UserError, match="not a number: the network diverged"):
        as_uint8(torch.tensor([0.5, torch.nan]))
