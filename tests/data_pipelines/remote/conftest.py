"""What the tests of data sets behind a server share."""

import pytest

from tests.helpers.ranged_server import serving


@pytest.fixture
def server(data):
    """Serves the module's own `data`."""
    with serving(data.root) as server:
        yield server
