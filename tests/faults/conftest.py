"""Fixtures of the tests of faults: a parent process of ranks, and undisturbed runs to compare with."""

import pytest

from tests.helpers.faults.fault_harness import FaultHarness
from tests.helpers.faults.forked_ranks import RankForker


@pytest.fixture(scope="session")
def forker():
    with RankForker() as parent:
        yield parent


@pytest.fixture(scope="session")
def harness(forker, digits, tmp_path_factory) -> FaultHarness:
    return FaultHarness(forker, tmp_path_factory.mktemp("harness"), digits.root)
