"""Fixtures of all tests."""

import pytest

from data_pipelines.shards import make


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The folder of the embedded digits as a data set."""
    root = tmp_path_factory.mktemp("data") / "digits"
    make("digits", root, progress=False)
    return root
