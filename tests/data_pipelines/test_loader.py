"""Batches: the same for any ranks, micro-batches and restarts; bad images are replaced."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipelines.common.errors import UserError
from data_pipelines.common.retry import to_stderr
from data_pipelines.dali import in_order
from data_pipelines.dataset import Dataset
from data_pipelines.image_options import ImageOptions
from data_pipelines.loader import Batch
from data_pipelines.plan import BatchShare, Plan
from data_pipelines.reader import Reader
from data_pipelines.views import Blur, Crop, Jitter, Normalize, Range, Shuffle, View
from tests.helpers.tiny_dataset import image_loader, pictures, png, write_dataset

AUGMENTED = View(
    crop=Crop(scale=Range(low=0.2, high=1.0)),
    jitter=Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, probability=0.8),
    hue="hsv",
    grayscale=0.2,
    blur=Blur(sigma=Range(low=0.1, high=2.0), probability=0.5),
    flip=0.5,
)
IMAGES = ImageOptions(size=16, normalize=Normalize(), threads=2, device=torch.device("cpu"))
BATCH = 64


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def load(
    data,
    *,
    steps=3,
    start=0,
    views=(AUGMENTED, AUGMENTED),
    images=IMAGES,
    warn=to_stderr,
    prefetch=2,
    **share,
) -> list[Batch]:
    """The batches of some steps of a data set; share: rank, world_size, accumulate, shuffle."""
    reader = Reader(data, "train")
    plan = Plan(7, reader.shards, 2)
    span = {"start": start, "stop": start + steps * BATCH, "prefetch": prefetch}
    loader = image_loader(reader, plan, images, list(views), BatchShare(BATCH, **share), warn=warn, **span)
    try:
        batches = list(loader)
    finally:
        loader.close()
        reader.close()
    assert loader.waited > 0
    return batches


def assert_equal(actual: list[Batch], expected: list[Batch]) -> None:
    """Bit for bit."""
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert len(a.views) == len(b.views)
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))
        assert np.array_equal(a.ids, b.ids)
        assert np.array_equal(a.positions, b.positions)
        assert torch.equal(a.label, b.label)
        assert a.images_seen == b.images_seen


def joined(parts: list[Batch]) -> Batch:
    """One global batch from its parts, in the order of ranks and micro-batches."""
    assert {part.images_seen for part in parts} == {parts[0].images_seen}
    places = [part.noise.first + i for part in parts for i in range(part.noise.images)]
    assert places == list(range(BATCH))
    return replace(
        parts[0],
        views=[torch.cat(view) for view in zip(*(part.views for part in parts), strict=True)],
        ids=np.concatenate([part.ids for part in parts], axis=1),
        positions=np.concatenate([part.positions for part in parts], axis=1),
        label=torch.cat([part.label for part in parts]),
    )


def together(data: Dataset, world: int, accumulate: int = 1, **options) -> list[Batch]:
    """The global batches that all ranks of a world load."""
    ranks = [load(data, rank=r, world_size=world, accumulate=accumulate, **options) for r in range(world)]
    steps = range(len(ranks[0]) // accumulate)
    return [joined([b for rank in ranks for b in rank[i * accumulate : (i + 1) * accumulate]]) for i in steps]


# ---- what a batch holds ------------------------------------------------------------------------------


def test_a_batch_is_the_plans_samples_with_their_labels(digits):
    reader = Reader(digits, "train")
    start = reader.images - 100  # over the seam of two epochs
    for step, batch in enumerate(load(digits, start=start, views=[AUGMENTED, View()])):
        seen = start + step * BATCH
        ids = Plan(7, reader.shards, 2).ids(seen, BATCH)
        assert np.array_equal(batch.ids, [ids, ids])
        assert np.array_equal(batch.positions, [np.arange(seen, seen + BATCH)] * 2)
        assert batch.label.tolist() == reader.entries(ids)["label"].tolist()
        assert batch.images_seen == batch.noise.images_seen == seen
        (plain,) = [view for view, _ in in_order(reader, IMAGES, ids, BATCH)]
        assert torch.equal(batch.views[1], plain)
        assert not torch.equal(batch.views[0], plain)
        for view in batch.views:
            assert view.shape == (BATCH, 3, 16, 16)
            assert view.is_contiguous(memory_format=torch.channels_last)
            assert view.dtype == torch.float32
    reader.close()


def test_float64_holds_the_same_values(digits):
    (double,) = load(digits, steps=1, images=replace(IMAGES, dtype=torch.float64))
    (single,) = load(digits, steps=1)
    assert double.views[0].dtype == torch.float64
    assert torch.equal(double.views[0], single.views[0].double())


def test_a_restart_anywhere_goes_on_bit_for_bit(digits):
    start, steps = 20 * BATCH, 5  # the first epoch ends in the third of these batches
    undisturbed, threads = load(digits, start=start, steps=steps), replace(IMAGES, threads=1)
    for step in range(1, steps):
        rest = load(digits, start=start + step * BATCH, steps=steps - step, images=threads, prefetch=5)
        assert_equal(rest, undisturbed[step:])


def test_fast_views_too_are_the_same_after_a_restart_and_on_any_ranks(tmp_path):
    data = write_dataset(tmp_path, pictures(96, 60, 90), 24)
    fast = {"images": replace(IMAGES, decode="fast"), "steps": 2}
    fast["shuffle"] = Shuffle(views=(1,), group=8, groups=4)  # a block spans two of four ranks
    whole = load(data, **fast)
    assert_equal(load(data, **{**fast, "images": IMAGES}), whole)
    assert_equal(load(data, start=BATCH, **{**fast, "steps": 1}), whole[1:])
    for world in (2, 4):
        assert_equal(together(data, world, **fast), whole)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 1), (4, 2)])
def test_ranks_and_micro_batches_make_the_same_global_batches(digits, world, accumulate):
    assert_equal(together(digits, world, accumulate), load(digits))


# ---- key views ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "accumulate"),
    [(2, 1), (2, 2), (4, 1), (8, 1)],
    ids=["local", "local, micro", "local, one", "spans"],
)
def test_key_views_do_not_depend_on_who_holds_their_block(digits, world, accumulate):
    shuffle = Shuffle(views=(1,), group=4, groups=4)  # blocks of 16: on 8 ranks of 8 images, one spans two
    plain, whole = load(digits), load(digits, shuffle=shuffle)
    for batch, ordered in zip(whole, plain, strict=True):
        assert torch.equal(batch.views[0], ordered.views[0])
        slots = batch.positions[1] - batch.images_seen
        assert not np.array_equal(slots, np.arange(BATCH))
        assert np.array_equal(np.sort(slots.reshape(-1, 16)), np.arange(BATCH).reshape(-1, 16))
        assert torch.equal(batch.views[1], ordered.views[1][slots])  # moved, and otherwise the same
        assert np.array_equal(batch.ids[1], ordered.ids[1][slots])
        assert torch.equal(batch.label, ordered.label)
    assert_equal(together(digits, world, accumulate, shuffle=shuffle), whole)


# ---- images that cannot be decoded -------------------------------------------------------------------


def damage(data: Dataset, samples: dict[int, bytes | str]) -> None:
    """Overwrites encoded images where they lie in the shards: with bytes, or "cut" in their middle."""
    reader = Reader(data, "train")
    for sample, what in samples.items():
        entry = reader.entries(np.array([sample]))[0]
        shard = np.searchsorted(reader.first, sample, side="right") - 1
        with open(data.root / reader.names[shard], "r+b") as file:
            if what == "cut":
                file.seek(int(entry["offset"]) + int(entry["size"]) // 2)
                file.write(bytes(int(entry["size"]) - int(entry["size"]) // 2))
            else:
                file.seek(int(entry["offset"]))
                file.write(what[: int(entry["size"])])
    reader.close()


@pytest.fixture
def tiny(tmp_path) -> Dataset:
    """96 pictures in shards of 24."""
    return write_dataset(tmp_path, pictures(96), 24)


BAD = {
    3: b"no image" * 9,
    40: "cut",
    41: png(pictures(1, 4, 4)[0]),  # a whole image, but not the one in the index
    42: bytes(100),
    95: b"\x89PNG\r\n\x1a\n" + bytes(90),
}


def test_bad_images_are_named_counted_and_replaced(tiny):
    expected = [np.unique(batch.ids) for batch in load(tiny)]
    damage(tiny, BAD)
    lines: list[str] = []
    batches = load(tiny, warn=lines.append)
    assert [len(batch.label) for batch in batches] == [BATCH] * 3
    for batch, before in zip(batches, expected, strict=True):
        good = {3: 4, 40: 43, 41: 43, 42: 43, 95: 0}  # the next that can be decoded, in a ring
        assert set(batch.ids.flat) == {good.get(sample, sample) for sample in before}
        assert batch.label.tolist() == (batch.ids[0] % 10).tolist()
        assert np.array_equal(batch.ids[0], batch.ids[1])
    assert len(lines) == len(BAD)
    for sample in BAD:
        (line,) = [line for line in lines if line.startswith(f"{sample:06d}.png in {tiny.root}/train/")]
        assert "cannot be decoded" in line
        assert "\n" not in line
    assert lines[-1].endswith(f"({len(BAD)} so far)")


def test_replacements_are_the_same_on_any_rank_and_after_a_restart(tiny):
    damage(tiny, BAD)
    quiet = {"warn": lambda line: None}
    whole = load(tiny, **quiet)
    assert_equal(load(tiny, start=BATCH, steps=2, **quiet), whole[1:])
    assert_equal(together(tiny, 2, 2, steps=2, **quiet), whole[:2])
    # A block spans two of four ranks.
    quiet |= {"steps": 2, "shuffle": Shuffle(views=(1,), group=8, groups=4)}
    assert_equal(together(tiny, 4, **quiet), load(tiny, **quiet))


def test_evaluation_replaces_them_too(tiny):
    damage(tiny, BAD)
    reader, lines = Reader(tiny, "train"), []
    parts = list(in_order(reader, IMAGES, np.arange(96), 40, warn=lines.append))
    labels = torch.cat([label for _, label in parts]).tolist()
    assert [len(view) for view, _ in parts] == [40, 40, 16]
    assert labels == [{3: 4, 40: 3, 41: 3, 42: 3, 95: 0}.get(i, i % 10) for i in range(96)]
    assert len(lines) == len(BAD)
    reader.close()


def test_nothing_but_bad_images_ends_the_run(tmp_path):
    data = write_dataset(tmp_path, pictures(70), 35)
    damage(data, dict.fromkeys(range(70), b"no image at all"))
    with pytest.raises(UserError, match="no image of 'train' can be decoded") as error:
        load(data, warn=lambda line: None)
    assert "\n" not in str(error.value)


# ---- evaluation --------------------------------------------------------------------------------------


def test_in_order_keeps_the_order_and_the_last_short_batch(digits):
    reader = Reader(digits, "test")
    ids = np.random.default_rng(0).permutation(reader.images)
    whole = list(in_order(reader, IMAGES, ids, reader.images))
    parts = list(in_order(reader, IMAGES, ids, 100))
    assert [len(view) for view, _ in parts] == [100, 100, 100, reader.images - 300]
    assert torch.equal(torch.cat([view for view, _ in parts]), whole[0][0])
    assert torch.cat([label for _, label in parts]).tolist() == reader.entries(ids)["label"].tolist()
    assert list(in_order(reader, IMAGES, ids[:0], 100)) == []
    for _ in in_order(reader, IMAGES, ids, 10):
        break  # its thread ends with it
    reader.close()
