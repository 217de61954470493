"""The loader with a maker of rows in memory: its order, shares, key shuffle and resume, and without DALI."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipelines.loader import Batch, Loader, Made, Maker
from data_pipelines.plan import BatchShare, Plan, shuffled
from data_pipelines.views import Shuffle

ROWS, BATCH, SEED = 100, 32, 5


class RowViews(Maker):
    """Rows of a table, [n, 3], as they are in the first view and marked by their position in the others."""

    def __init__(self, table: torch.Tensor, sources: list[int]):
        self.table, self.sources = table, sources

    def __call__(self, ids: list[np.ndarray], positions: list[np.ndarray]) -> Made:
        views = [
            self.table[torch.from_numpy(ids[source])] + number * torch.from_numpy(places)[:, None]
            for number, (source, places) in enumerate(zip(self.sources, positions, strict=True))
        ]
        return Made(views, ids, torch.from_numpy(ids[0] % 10))


def plan() -> Plan:
    return Plan(SEED, [40, 40, 20], 2)


def table() -> torch.Tensor:
    return torch.arange(ROWS * 3).reshape(ROWS, 3)


def load(start: int = 0, steps: int = 5, **share) -> list[Batch]:
    """The batches of some steps of one rank; share: rank, world_size, accumulate, shuffle."""
    part = BatchShare(BATCH, **share)
    loader = Loader(RowViews(table(), part.sources(2)), plan(), part, start=start, stop=start + steps * BATCH)
    try:
        return list(loader)
    finally:
        loader.close()


def rows(batches: list[Batch], view: int) -> torch.Tensor:
    return torch.cat([batch.views[view] for batch in batches])


def ids(batches: list[Batch], view: int) -> np.ndarray:
    return np.concatenate([batch.ids[view] for batch in batches])


def test_rows_come_in_the_order_of_the_plan():
    batches = load()
    order = plan().ids(0, 5 * BATCH)
    assert np.array_equal(ids(batches, 0), order)
    assert torch.equal(rows(batches, 0), table()[order])
    assert torch.equal(rows(batches, 1), table()[order] + torch.arange(5 * BATCH)[:, None])
    assert np.array_equal(torch.cat([batch.label for batch in batches]), order % 10)
    assert [batch.images_seen for batch in batches] == [step * BATCH for step in range(5)]


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("groups", [None, 4, 8])
def test_all_ranks_together_see_the_same(world_size, accumulate, groups):
    """Also where a block of the key shuffle, of 32 rows in the last case, spans several ranks."""
    shuffle = groups and Shuffle(views=(1,), group=4, groups=groups)
    options = {"world_size": world_size, "accumulate": accumulate, "shuffle": shuffle}
    parts = [load(rank=rank, **options) for rank in range(world_size)]
    for step, whole in enumerate(load(shuffle=shuffle)):
        of_step = slice(step * accumulate, (step + 1) * accumulate)
        together = [batch for part in parts for batch in part[of_step]]
        assert {batch.images_seen for batch in together} == {step * BATCH}
        for view in (0, 1):
            assert torch.equal(rows(together, view), whole.views[view])
            assert np.array_equal(ids(together, view), whole.ids[view])
        assert torch.equal(torch.cat([batch.label for batch in together]), whole.label)


@pytest.mark.parametrize("world_size", [1, 4])
def test_key_views_are_permuted_and_keep_their_draws(world_size):
    shuffle = Shuffle(views=(1,), group=4, groups=8)
    assert BatchShare(BATCH, 0, world_size, shuffle=shuffle).keys_are_local == (world_size == 1)
    parts = [load(steps=1, rank=r, world_size=world_size, shuffle=shuffle) for r in range(world_size)]
    batches = [batch for part in parts for batch in part]
    (plain,), slots = load(steps=1), shuffled(SEED, 0, BATCH, 4, 8)
    assert torch.equal(rows(batches, 0), plain.views[0])
    assert torch.equal(rows(batches, 1), plain.views[1][slots])
    assert np.array_equal(np.concatenate([batch.positions[1] for batch in batches]), slots)
    assert all(np.array_equal(batch.order, slots) for batch in batches)


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_run_goes_on_where_it_stopped(step):
    whole, rest = load(), load(start=step * BATCH, steps=5 - step)
    for batch, expected in zip(rest, whole[step:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch.views, expected.views, strict=True))
        assert batch.images_seen == expected.images_seen


def test_a_share_names_its_places_and_sources():
    share = BatchShare(64, rank=1, world_size=2, accumulate=2)
    assert share.micro_batch == 16
    assert share.slices == [slice(32, 48), slice(48, 64)]
    assert share.keys_are_local
    assert share.sources(2) == [0, 0]
    local, spanning = (BatchShare(64, 1, 2, 2, Shuffle((1,), 8, groups)) for groups in (2, 4))
    assert (local.keys_are_local, local.sources(2)) == (True, [0, 0])
    assert (spanning.keys_are_local, spanning.sources(2)) == (False, [0, 1])


def test_a_maker_with_other_sources_than_the_share_is_refused():
    share = BatchShare(BATCH, 0, 4, shuffle=Shuffle((1,), 4, 8))
    with pytest.raises(ValueError, match=r"sources \[0, 0\], the share of the batch needs \[0, 1\]"):
        Loader(RowViews(table(), [0, 0]), plan(), share, start=0, stop=BATCH)


WITHOUT_DALI = """
import sys
sys.modules["nvidia.dali"] = None  # an import of it raises
import torch
import data_pipelines.dataset_loading, data_pipelines.image_options, data_pipelines.reader
import trainer.cli, trainer.tasks.pretrain, trainer.tasks.evaluate, trainer.tasks.plan
from data_pipelines.views import Shuffle
from tests.data_pipelines.test_maker import BATCH, load, rows

torch.manual_seed(0)
layer = torch.nn.Linear(3, 3).double()
optimizer = torch.optim.SGD(layer.parameters(), 1e-5)
losses = []
for batch in load(steps=40, accumulate=2, shuffle=Shuffle(views=(1,), group=4, groups=8)):
    rows = batch.views[0].double()
    loss = (layer(rows) - rows).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert len(losses) == 80
assert losses[-1] < 0.01 * losses[0], losses
"""


def test_a_machine_without_dali_trains_from_rows():
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DALI], cwd=root, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
