"""What the tests of faults share: a parent of ranks, and undisturbed runs to compare with."""

import pytest

from tests.helpers.faults.fault_stand import Stand
from tests.helpers.faults.forked_ranks import Nursery


@pytest.fixture(scope="session")
def nursery():
    with Nursery() as parent:
        yield parent


@pytest.fixture(scope="session")
def stand(nursery, digits, tmp_path_factory) -> Stand:
    return Stand(nursery, tmp_path_factory.mktemp("stand"), digits.root)
