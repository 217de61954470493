"""Lanes: parts of every batch come from shards of their own, and nothing else about the order changes."""

import numpy as np
import pytest
import torch

from data_pipelines.dataset import Dataset
from data_pipelines.image_options import ImageOptions
from data_pipelines.plan import BatchShare, Lanes, Plan
from data_pipelines.reader import Reader
from data_pipelines.views import Normalize, Shuffle, View
from tests.helpers.ranged_server import opened, serving
from tests.helpers.tiny_dataset import image_loader, samples, write_samples

SHARDS = [700, 1, 350, 999, 512, 64, 1000, 3, 875, 400, 96]  # uneven on purpose
IMAGES = sum(SHARDS)
OPTIONS = ImageOptions(size=8, normalize=Normalize(), threads=1, device=torch.device("cpu"))


@pytest.mark.parametrize("lanes", [2, 3, 4])
@pytest.mark.parametrize("batch", [12, 96, 9216])
def test_an_epoch_is_a_permutation_and_any_piece_is_a_piece_of_the_sequence(lanes, batch):
    plan = Plan(5, SHARDS, 4, Lanes(batch, lanes))
    whole = plan.ids(0, 3 * IMAGES)
    for epoch in range(3):  # no epoch, and no window, is a whole number of batches
        assert np.array_equal(np.sort(whole[epoch * IMAGES : (epoch + 1) * IMAGES]), np.arange(IMAGES))
    again = Plan(5, SHARDS, 4, Lanes(batch, lanes))
    for start in np.random.default_rng(0).integers(0, 2 * IMAGES, 30):
        np.testing.assert_array_equal(again.ids(int(start), 700), whole[start : start + 700])
    assert not np.array_equal(whole[:IMAGES], whole[IMAGES : 2 * IMAGES])


def test_one_lane_would_be_the_order_without_lanes_but_for_its_name():
    """A lane's own stream of random numbers is that of the window for the first of them."""
    assert np.array_equal(Plan(5, SHARDS, 4, Lanes(96, 1)).ids(0, 9000), Plan(5, SHARDS, 4).ids(0, 9000))


def test_lanes_of_a_window_have_different_shards_and_mix_their_own():
    lanes, window = Lanes(80, 4), 8
    plan, positions = Plan(3, [100] * 24, window, lanes), np.arange(2400)
    shards, of = plan.ids(0, 2400) // 100, lanes.of(positions)
    for start in range(0, 2400, 800):
        inside, begin = positions // 800 == start // 800, positions < start + 160
        read = [set(shards[inside & (of == lane)]) for lane in range(4)]
        assert [len(numbers) for numbers in read] == [2] * 4
        assert len(set.union(*read)) == 8
        for lane in range(4):  # in the first two batches already
            assert set(shards[inside & begin & (of == lane)]) == read[lane]


@pytest.mark.parametrize("batch", [12, 96])
def test_what_is_announced_is_what_is_read(batch):
    lanes = Lanes(batch, 3)
    plan, first = Plan(5, SHARDS, 4, lanes), np.concatenate([[0], np.cumsum(SHARDS)])

    def shards_of(ids: np.ndarray) -> set:
        return set(np.searchsorted(first, ids, side="right") - 1)

    for seen in range(0, 2 * IMAGES, batch):
        for start, stop in ((0, 1), (1, 2), (2, 3), (0, 2), (1, 3)):  # a lane, or two
            places = np.arange(start * batch // 3, stop * batch // 3)
            now, soon = plan.ahead(seen, places)
            assert shards_of(plan.ids(seen, batch)[places]) <= shards_of(now) | shards_of(soon)
    everything = plan.ahead(0)[0]
    assert set(np.concatenate([plan.ahead(0, np.array([lane * batch // 3]))[0] for lane in range(3)])) == set(
        everything
    )


# ---- nodes with a cache each -----------------------------------------------------------------------

BATCH, WINDOW, NODES, RANKS, STOP = 32, 12, 2, 2, 544


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    """560 pictures in 80 shards: windows of 84, so that batches and shards end at other places than they."""
    return write_samples(tmp_path_factory.mktemp("served"), {"train": samples(560)}, 7)


def train(dataset: Dataset, node: int, lanes: Lanes | None, shuffle: Shuffle | None) -> list[np.ndarray]:
    """An epoch of a node's ranks, one after the other: the ids of their batches."""
    seen = []
    for rank in range(node * RANKS, (node + 1) * RANKS):
        share = BatchShare(BATCH, rank, NODES * RANKS, shuffle=shuffle)
        with Reader(dataset, "train") as reader:
            plan = Plan(5, reader.shards, WINDOW, lanes)
            views = [View(), View()] if shuffle else [View()]
            loader = image_loader(reader, plan, OPTIONS, views, share, start=0, stop=STOP)
            seen += [batch.ids for batch in loader]
            loader.close()
    return seen


@pytest.mark.parametrize("shuffle", [None, Shuffle((1,), 4, 4)], ids=["", "keys of the same node"])
@pytest.mark.parametrize(("lanes", "least", "most"), [(None, 1.0, 1.0), (2, 0.5, 0.6), (4, 0.5, 0.6)])
def test_bytes_that_a_node_fetches_of_a_set_on_the_web(data, tmp_path, shuffle, lanes, least, most):
    whole = sum(shard.bytes for shard in data.splits["train"].shards)
    with serving(data.root) as server:
        for node in range(NODES):
            remote = opened(server.address, tmp_path / str(node))
            ids = train(remote, node, lanes and Lanes(BATCH, lanes), shuffle)
            assert len(ids) == RANKS * STOP // BATCH
            fetched = sum(path.stat().st_size for path in (tmp_path / str(node)).rglob("*.tar"))
            assert least <= fetched / whole <= most
