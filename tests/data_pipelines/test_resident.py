"""Images that are decoded once, and pillow's maker: samples, labels and replacements are those of DALI's."""

import numpy as np
import pytest
import torch

from data_pipelines import pillow
from data_pipelines.common.errors import UserError
from data_pipelines.dali import ImageViews, in_order
from data_pipelines.image_options import ImageOptions
from data_pipelines.loader import Loader, Maker
from data_pipelines.pillow import PillowPipeline
from data_pipelines.plan import BatchShare, Plan
from data_pipelines.reader import Reader
from data_pipelines.resident import ResidentImages, ResidentViews, decoded_bytes, one_size
from data_pipelines.views import View
from tests.data_pipelines.test_dali import CPU, MOCO, VALUES
from tests.helpers.ranged_server import opened, serving
from tests.helpers.tiny_dataset import pictures, png, write_dataset, write_samples

N, SEED = 40, 5
OPTIONS = ImageOptions(16, VALUES, 2, CPU)
VIEWS, SOURCES = [View(), MOCO], [0, 1]
IDS = [np.array([3, 39, 8, 0]), np.array([5, 5, 12, 38])]
PLACES = [np.array([1000, 1001, 1005, 1002]), np.array([77, 78, 70, 79])]


def makers(reader: Reader, warn=pytest.fail, sources=SOURCES) -> dict[str, Maker]:
    resident = ResidentImages(reader, CPU, 2, warn)
    return {
        "dali": ImageViews(reader, OPTIONS, VIEWS, sources, SEED, 16, warn),
        "resident": ResidentViews(resident, OPTIONS, VIEWS, sources, SEED),
        "pillow": with_pillow(ImageViews(reader, OPTIONS, VIEWS, sources, SEED, 16, warn)),
    }


def with_pillow(maker: ImageViews) -> ImageViews:
    """As it is made where DALI is not installed."""
    pipeline = maker.pipeline
    maker.pipeline = PillowPipeline(pipeline.views, pipeline.sources, OPTIONS.size, VALUES, CPU)
    return maker


@pytest.fixture
def reader(tmp_path):
    with Reader(write_dataset(tmp_path, pictures(N), 7), "train") as reader:
        yield reader


def test_the_same_samples_labels_and_views_whoever_decodes(reader):
    made = {name: maker(IDS, PLACES) for name, maker in makers(reader).items()}
    for one in made.values():
        assert [ids.tolist() for ids in one.ids] == [ids.tolist() for ids in IDS]
        assert one.labels.tolist() == [3, 9, 8, 0]
        for view, expected in zip(one.views, made["dali"].views, strict=True):
            assert view.is_contiguous(memory_format=torch.channels_last)
            assert (view - expected).abs().max() <= 4  # of 255: rounding that jitter magnifies
            assert (view - expected).abs().mean() < 0.05
    for view, expected in zip(made["pillow"].views, made["resident"].views, strict=True):
        assert torch.equal(view, expected)


def test_batches_of_a_loader_are_equal_bits_on_any_ranks_and_after_a_resume(reader):
    plan = Plan(SEED, reader.shards, 3)

    def batches(rank: int, world: int, start: int) -> list[list[torch.Tensor]]:
        resident = ResidentViews(ResidentImages(reader, CPU), OPTIONS, VIEWS, [0, 0], SEED)
        loader = Loader(resident, plan, BatchShare(8, rank, world), start=start, stop=80)
        made = [batch.views for batch in loader]
        loader.close()
        return made

    whole = batches(0, 1, 0)
    assert len(whole) == 10
    halves = [batches(rank, 2, 0) for rank in (0, 1)]
    for number, views in enumerate(whole):
        for view, first, second in zip(views, halves[0][number], halves[1][number], strict=True):
            assert torch.equal(view, torch.cat([first, second]))
    later = batches(0, 1, 48)
    for views, expected in zip(later, whole[6:], strict=True):
        assert all(map(torch.equal, views, expected))


def test_what_cannot_be_decoded_is_replaced_by_the_same_image_and_said(tmp_path):
    images = [(png(image), 32, 32, label) for label, image in enumerate(pictures(10))]
    for broken in (4, 5, 9):
        images[broken] = (images[broken][0][:60], 32, 32, broken)
    with Reader(write_samples(tmp_path, {"train": images}, 5), "train") as reader:
        ids, places = [np.arange(10)], [np.arange(10)] * 2
        for name in ("dali", "resident", "pillow"):
            lines: list[str] = []
            maker = makers(reader, lines.append, [0, 0])[name]
            made = [maker(ids, places) for _ in range(2)]
            for one in made:
                assert one.labels.tolist() == [0, 1, 2, 3, 6, 6, 6, 7, 8, 0]
                assert one.ids[0].tolist() == one.labels.tolist()
            assert len(lines) == 3
            assert "000004.png in " in lines[0]
            assert "cannot be decoded; image 6 of the split takes its place (3 so far)" in lines[0]


def test_nothing_that_can_be_decoded_is_one_line(tmp_path):
    images = [(b"not an image", 8, 8, 0)] * 3
    with Reader(write_samples(tmp_path, {"train": images}, 5), "train") as reader:
        for name in ("resident", "pillow"):
            with pytest.raises(UserError, match="no image of 'train' can be decoded"):
                makers(reader, lambda line: None)[name]([np.arange(2)] * 2, [np.arange(2)] * 2)


def test_images_of_several_sizes(tmp_path):
    """Resident ones have one size; pillow makes views of any."""
    shapes = [(20, 30), (30, 20), (20, 30), (16, 16)]
    images = [(png(pictures(1, *shape)[0]), *shape, i) for i, shape in enumerate(shapes)]
    with Reader(write_samples(tmp_path, {"train": images}, 3), "train") as reader:
        assert one_size(reader) is None
        assert decoded_bytes(reader) is None
        ids, places = [np.arange(4)] * 2, [np.arange(4)] * 2
        made = makers(reader)
        with pytest.raises(ValueError, match=r"^the images of 'train' have several sizes"):
            made["resident"](ids, places)
        for view, expected in zip(
            made["pillow"](ids, places).views, made["dali"](ids, places).views, strict=True
        ):
            assert (view - expected).abs().max() <= 4


def test_the_size_of_decoded_images(reader):
    assert one_size(reader) == (32, 32)
    assert decoded_bytes(reader) == N * 32 * 32 * 3


def test_where_dali_is_missing_pillow_makes_the_views(reader, monkeypatch):
    plain = list(in_order(reader, OPTIONS, np.arange(10), 4))
    monkeypatch.setattr("data_pipelines.dali.has_dali", lambda: False)
    assert isinstance(ImageViews(reader, OPTIONS, [View()], [0], 0, 4).pipeline, PillowPipeline)
    for (images, labels), (expected, same) in zip(
        in_order(reader, OPTIONS, np.arange(10), 4), plain, strict=True
    ):
        assert torch.equal(labels, same)
        assert (images - expected).abs().max() <= 1
    assert pillow.has_dali()


def test_lacking_memory_blames_no_image(reader, monkeypatch):
    def lacking(encoded: bytes):
        raise MemoryError

    monkeypatch.setattr("data_pipelines.pillow.decode", lacking)
    with pytest.raises(
        UserError, match=r"keeping 40 decoded images fails: not enough memory .*resident=false"
    ):
        makers(reader)["resident"](IDS, PLACES)


def test_images_behind_a_web_server_are_fetched_once_and_kept(tmp_path):
    data = write_dataset(tmp_path / "data", pictures(N), 7)
    with serving(data.root) as server, Reader(opened(server.address, tmp_path / "cache"), "train") as remote:
        maker = ResidentViews(ResidentImages(remote, CPU), OPTIONS, VIEWS, SOURCES, SEED)
        made = maker(IDS, PLACES)
        asked = len(server.requests)
        again = maker(IDS, PLACES)
        assert len(server.requests) == asked
    with Reader(data, "train") as reader:
        expected = makers(reader)["resident"](IDS, PLACES)
    for views, same, right in zip(made.views, again.views, expected.views, strict=True):
        assert torch.equal(views, right)
        assert torch.equal(same, right)
