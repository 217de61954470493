"""The order of samples: complete, seamless, the same for any number of ranks, cheap at any size."""

import re
import time
import tracemalloc

import numpy as np
import pytest

from data_pipelines import plan as plan_module
from data_pipelines.common.errors import UserError
from data_pipelines.plan import Plan, check_division, pieces, rank_slice, sample, shuffled

SHARDS = [700, 1, 350, 999, 512, 64, 1000, 3, 875, 400, 96]  # uneven on purpose
IMAGES = sum(SHARDS)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8, 1024])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_ranks_share_the_same_global_batches(world, accumulate):
    batch, reference, plan = 9216, Plan(5, SHARDS, 4), Plan(5, SHARDS, 4)
    seen = []
    for start in range(0, 3 * IMAGES, batch):
        slices = [
            rank_slice(batch, rank, world, accumulate, micro)
            for rank in range(world)
            for micro in range(accumulate)
        ]
        assert [s.start for s in slices] == [0] + [s.stop for s in slices[:-1]]
        assert slices[-1].stop == batch
        of_rank = [plan.ids(start + s.start, s.stop - s.start) for s in slices]
        assert {len(ids) for ids in of_rank} == {batch // world // accumulate}
        np.testing.assert_array_equal(np.concatenate(of_rank), reference.ids(start, batch))
        seen.append(np.concatenate(of_rank))
    seen = np.concatenate(seen)
    for epoch in range(2):  # though no epoch is a whole number of batches
        assert np.array_equal(np.sort(seen[epoch * IMAGES : (epoch + 1) * IMAGES]), np.arange(IMAGES))


def test_a_rank_takes_its_micro_batches_from_its_own_slice():
    for rank in range(4):
        whole = rank_slice(96, rank, 4)
        parts = [rank_slice(96, rank, 4, accumulate=3, micro=micro) for micro in range(3)]
        assert whole == slice(24 * rank, 24 * rank + 24)
        assert parts == [slice(whole.start + 8 * i, whole.start + 8 * i + 8) for i in range(3)]


def test_any_piece_is_a_piece_of_the_same_sequence():
    whole = Plan(1, SHARDS, 3).ids(0, 4 * IMAGES)
    edges = np.cumsum(SHARDS)
    rng = np.random.default_rng(0)
    cuts = [
        0,
        1,
        IMAGES - 1,
        IMAGES,
        IMAGES + 1,
        2 * IMAGES,
        *edges,
        *(edges - 1),
        *rng.integers(0, 3 * IMAGES, 40),
    ]
    plan = Plan(1, SHARDS, 3)
    for a in rng.permutation(cuts):
        for b, c in np.sort(rng.choice(cuts, (3, 2)) + a):
            if c <= len(whole):
                joined = np.concatenate([plan.ids(a, b - a), plan.ids(b, c - b)])
                np.testing.assert_array_equal(joined, whole[a:c])
    for place in range(IMAGES - 20, IMAGES + 20):  # one by one over the seam of two epochs
        assert plan.ids(place, 1) == whole[place]
    assert plan.ids(7, 0).tolist() == []


def test_epochs_differ_and_follow_the_seed():
    one_window = len(SHARDS)
    first, second = np.split(Plan(0, SHARDS, one_window).ids(0, 2 * IMAGES), 2)
    other = Plan(1, SHARDS, one_window).ids(0, IMAGES)
    for a, b in ((first, second), (first, other), (first, np.arange(IMAGES)), (second, other)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(IMAGES)  # standard deviations of unrelated orders
    starts = {tuple(np.unique(Plan(seed, [10] * 50, 1).ids(0, 20) // 10)) for seed in range(5)}
    assert len(starts) > 1  # the shards' own order follows the seed as well


@pytest.mark.parametrize("window", [1, 4, 16])
def test_a_window_mixes_whole_shards_and_no_others(window):
    shards = [100] * 22
    ids = Plan(3, shards, window).ids(0, 2200)
    for start in range(0, 22, window):
        members = ids[start * 100 : (start + window) * 100]
        names, counts = np.unique(members // 100, return_counts=True)
        assert len(names) == min(window, 22 - start)
        assert set(counts) == {100}
        if len(names) > 1:  # mixed: the first quarter of a window already holds every one of its shards
            assert len(np.unique(members[: len(members) // 4] // 100)) == len(names)


def test_a_billion_samples_cost_one_window():
    shards, batch = [10_000] * 100_000, 4096
    tracemalloc.start()
    try:
        for start in (0, 10**9 - 1000, 7 * 10**9 + 123_456_789):
            began = time.process_time()
            plan = Plan(0, shards, 16)
            place = rank_slice(batch, 1000, 1024, accumulate=2, micro=1)
            ids = plan.ids(start + place.start, place.stop - place.start)
            assert len(np.unique(ids)) == 2
            assert 0 <= ids.min() < ids.max() < 10**9
            assert len(plan.ids(start, 4 * batch)) == 4 * batch
            assert time.process_time() - began < 3
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_long_shards_are_cut_into_even_pieces(monkeypatch):
    monkeypatch.setattr(plan_module, "PIECE", 100)
    shards = np.array([0, 1, 99, 100, 101, 1000, 1001, 250])
    cut = pieces(shards).tolist()
    assert cut == [0, 1, 99, 100, 51, 50, *[100] * 10, *[91] * 11, 84, 83, 83]
    assert sum(cut) == shards.sum()
    long, short = Plan(3, [1000, 2000], 4), Plan(3, [100] * 30, 4)  # the same samples in the same order
    assert np.array_equal(long.ids(0, 7000), short.ids(0, 7000))
    assert np.array_equal(np.sort(long.ids(3000, 3000)), np.arange(3000))


@pytest.mark.parametrize(
    ("images", "count"), [(10, 20), (10, 10), (10, 5), (11, 5), (1000, 3), (10**12, 500)]
)
def test_a_sample_is_a_choice_of_distinct_ids(images, count):
    actual = sample(0, "probe", images, count)
    assert len(actual) == min(images, count)
    assert actual.dtype == np.int64
    assert (np.diff(actual) > 0).all()
    assert 0 <= actual.min() <= actual.max() < images
    assert np.array_equal(actual, sample(0, "probe", images, count))
    if count < images and images > 100:
        assert not np.array_equal(actual, sample(1, "probe", images, count))
        assert not np.array_equal(actual, sample(0, "other", images, count))
    assert len(sample(0, "probe", images, 0)) == 0


@pytest.mark.parametrize("count", [3, 7])  # by drawing, and by a permutation
def test_a_sample_takes_every_id_equally_often(count):
    n = 4000
    members = np.concatenate([sample(seed, "probe", 12, count) for seed in range(n)])
    share = count / 12
    assert (
        np.abs(np.bincount(members, minlength=12) / n - share) < 4 * np.sqrt(share * (1 - share) / n)
    ).all()


# ---- what divides ------------------------------------------------------------------------------------


def named(message: str, key: str) -> list[int]:
    """The numbers that a message names for a key."""
    actual = re.search(rf"--{key} ([\d, ]+)", message)
    return [int(word) for word in actual[1].split(",")] if actual else []


def divides(batch: int, world: int, accumulate: int, unit: int) -> bool:
    """Whether every micro-batch of every rank holds whole units: counted, not divided."""
    if not batch or batch != world * accumulate * (batch // world // accumulate):
        return False
    slices = [rank_slice(batch, r, world, accumulate, m) for r in range(world) for m in range(accumulate)]
    return all(s.start % unit == 0 and s.stop % unit == 0 for s in slices)


def test_refused_batches_come_with_sizes_that_work():
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        batch, world = int(rng.integers(1, 700)), int(rng.integers(1, 13))
        accumulate, unit = int(rng.integers(1, 4)), int(rng.choice([1, 2, 5, 8, 32, 64]))
        arguments = (accumulate, unit, "recipe key groups")
        if divides(batch, world, accumulate, unit):
            check_division(batch, world, *arguments)
            continue
        refused += 1
        with pytest.raises(UserError, match="recipe key groups") as error:
            check_division(batch, world, *arguments)
        message = str(error.value)
        assert "\n" not in message
        assert f"batch={batch} " in message
        worlds, batches = (
            named(message, "num_processes"),
            [int(b) for b in re.findall(r"batch=(\d+)", message)[1:]],
        )
        assert worlds == [w for w in range(1, 1025) if divides(batch, w, accumulate, unit)]
        for size in batches:
            assert divides(size, world, accumulate, unit)
            check_division(size, world, *arguments)
        for processes in worlds:
            check_division(batch, processes, *arguments)
        step = world * accumulate * unit  # the nearest below, where there is one, and above
        assert batches == [b for b in (batch // step * step, (batch // step + 1) * step) if b]
    assert refused > 200


# ---- key views ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "groups"), [(8, 8), (64, 4), (16, 2), (10, 8), (3, 5), (1, 2)])
def test_key_groups_take_equally_of_every_query_group(group, groups):
    block, batch = group * groups, group * groups * 3
    for seen in (0, batch, 10**9):
        places = shuffled(7, seen, batch, group, groups)
        for start in range(0, batch, block):
            members = places[start : start + block]
            assert np.array_equal(np.sort(members), np.arange(start, start + block))
            query = (members - start) // group
            taken = np.stack(
                [np.bincount(query[k : k + group], minlength=groups) for k in range(0, block, group)]
            )
            assert taken.min() == group // groups
            assert taken.max() == -(-group // groups)
            if group % groups == 0:
                assert (taken == group // groups).all()


def test_key_orders_are_a_function_of_seed_and_images_seen():
    first = shuffled(0, 512, 512, 64, 8)
    np.testing.assert_array_equal(first, shuffled(0, 512, 512, 64, 8))
    for other in (shuffled(1, 512, 512, 64, 8), shuffled(0, 1024, 512, 64, 8)):
        assert (first != other).mean() > 0.9
    one, two = shuffled(0, 512, 1024, 64, 8).reshape(2, 512)
    assert (two - 512 != one).mean() > 0.9  # blocks do not repeat one another


def test_a_batch_of_broken_blocks_is_refused():
    with pytest.raises(ValueError, match="whole blocks of 8 x 4"):
        shuffled(0, 0, 48, 4, 8)
