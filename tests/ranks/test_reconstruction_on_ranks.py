"""Reconstruction on 1 and 3 gloo processes: equal on every rank, and to rounding on any number of them."""

import pytest

from tests.ranks.jobs import fork

WORLDS = (1, 3)  # slices are uneven, and of two images one rank has none


@pytest.mark.slow
def test_reconstruction_is_equal_on_any_ranks(tmp_path, digits, forker):
    jobs = [{"data": str(digits.root)}]
    results = {world: fork(forker, tmp_path, world, jobs, "worker_reconstruction.py") for world in WORLDS}
    figures, errors, refused = results[1][0]
    assert len(figures) == 10
    assert len(errors) == 2
    assert "a reconstruction is not a number" in refused
    for world in WORLDS[1:]:
        assert results[world] == [results[world][0]] * world  # all bits, on every rank
        assert results[world][0][0] == pytest.approx(figures, rel=1e-9)
        assert results[world][0][1:] == [pytest.approx(errors, rel=1e-9), refused]
