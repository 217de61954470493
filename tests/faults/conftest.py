"""The fixture of the tests of faults: undisturbed runs to compare with."""

import pytest

from tests.helpers.faults.fault_harness import FaultHarness


@pytest.fixture(scope="session")
def harness(forker, digits, tmp_path_factory) -> FaultHarness:
    return FaultHarness(forker, tmp_path_factory.mktemp("harness"), digits.root)
