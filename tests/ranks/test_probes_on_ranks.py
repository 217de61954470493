"""Probes on 1 process of 2 threads and on 2 gloo processes of 1: the same features and figures, all bits."""

import pytest

from tests.ranks.jobs import fork

WORLDS = (1, 2)
EVALUATE = {
    "linear": {"iterations": 20},
    "linear_sgd": {"epochs": 3},
    "mlp": {"epochs": 3},
    "svm": {"iterations": 40},
    "few_shot": {"draws": 2},
}


@pytest.mark.slow
def test_probes_are_equal_on_any_ranks(tmp_path, digits, forker):
    jobs = [{"data": str(digits.root), "evaluate": EVALUATE}]
    results = {world: fork(forker, tmp_path, world, jobs, "worker_probes.py") for world in WORLDS}
    figures, sums, refused, there = results[1]["ranks"][0]
    assert len(figures) == 25
    shares = [name for name in figures if name.count("/") == 2 or name == "knn/y"]
    assert all(figures[name] > 0.3 for name in shares)
    assert figures["probe/svm/y/iterations"] == 40
    assert "few_shot.shots=1000" in refused
    assert not there  # the cache was removed
    assert results[2]["ranks"] == [[figures, sums, refused, False]] * 2
    assert results[2]["rows"] == results[1]["rows"]
