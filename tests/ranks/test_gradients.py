"""Gradients of two ranks: those that are not finite, and DDP's, which lie in its buckets."""

import pytest

from tests.ranks.jobs import fork
from tests.ranks.test_engines import ENGINES, options


@pytest.fixture(scope="module")
def results(tmp_path_factory, digits, forker):
    words = options("hybrid", digits.root)
    jobs = [{"name": engine, "engine": engine, "recipe": words, "do": ["diverge"]} for engine in ENGINES]
    jobs.append({"name": "buckets", "engine": "ddp", "recipe": [*words, "accumulate=2"], "do": ["buckets"]})
    return fork(forker, tmp_path_factory.mktemp("gradients"), 2, jobs)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_that_are_not_finite_are_known_at_once_under_every_engine(results, engine):
    """Under a loss that is finite. ZeRO-3 makes no step then, and its weights stay finite."""
    assert results[engine]["finite"] == [[False, False]] * 2


def test_gradients_in_ddps_buckets_are_to_the_bit_those_that_were_copied_from_them(results):
    assert results["buckets"]["views"] is True
    assert results["buckets"]["different"] == [[], []]
