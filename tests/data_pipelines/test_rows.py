"""Rows of tables: each once an epoch, the same on any ranks and after a restart."""

import numpy as np
import pytest
import torch

from data_pipelines.loader import Batch, Loader
from data_pipelines.plan import BatchShare, Plan
from data_pipelines.rows import Rows

ROWS = 40


def batches(
    table,
    world: int = 1,
    start: int = 0,
    accumulate: int = 1,
) -> list[list[Batch]]:
    """The batches of every rank, of a run of two epochs."""
    runs = []
    for rank in range(world):
        share = BatchShare(8, rank, world, accumulate)
        maker = Rows([table, np.arange(ROWS)])
        loader = Loader(maker, Plan(7, [ROWS], 1), share, start=start, stop=2 * ROWS)
        runs.append(list(loader))
        loader.close()
    return runs


def together(runs: list[list[Batch]], view: int) -> torch.Tensor:
    """A view of all samples in the order of the run."""
    return torch.cat([torch.cat([part.views[view] for part in step]) for step in zip(*runs, strict=True)])


@pytest.fixture
def table() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, 2, 4, 4)).astype(np.float32)


def test_an_epoch_has_every_row_once(table):
    (run,) = batches(table)
    ids = np.concatenate([batch.ids[0] for batch in run])
    assert sorted(ids[:ROWS]) == sorted(ids[ROWS:]) == list(range(ROWS))
    assert not np.array_equal(ids[:ROWS], ids[ROWS:])
    for batch in run:
        assert torch.equal(batch.views[0], torch.from_numpy(table[batch.ids[0]]))
        assert batch.views[1].tolist() == batch.ids[0].tolist()
        assert (batch.label == -1).all()


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (4, 1), (1, 2), (2, 2)])
def test_the_rows_of_a_step_are_the_same_on_any_ranks(table, world, accumulate):
    one, several = batches(table), batches(table, world, accumulate=accumulate)
    assert len(several) == world

    def by_step(runs):
        rows = {}
        for run in runs:
            for batch in run:
                rows.setdefault(batch.images_seen, []).append((batch.positions[0], batch.views[0]))
        return {
            seen: torch.cat([view for _, view in sorted(parts, key=lambda part: part[0][0])])
            for seen, parts in rows.items()
        }

    a, b = by_step(one), by_step(several)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[seen], b[seen]) for seen in a)


def test_a_restart_goes_on_with_the_same_rows(table):
    whole, rest = batches(table), batches(table, start=24)
    assert torch.equal(together(whole, 0)[24:], together(rest, 0))


def test_a_mapped_file_gives_the_same_rows(table, tmp_path):
    np.save(tmp_path / "table.npy", table)
    mapped = np.load(tmp_path / "table.npy", mmap_mode="r", allow_pickle=False)
    assert torch.equal(together(batches(mapped), 0), together(batches(table), 0))


def test_tables_of_unequal_length_are_refused(table):
    with pytest.raises(ValueError, match="tables: rows differ"):
        Rows([table, table[1:]])
