"""One server for all tests that leave it as it was."""

import pytest
from kit.serving import serving


@pytest.fixture(scope="package")
def server(checkpoint, tmp_path_factory):
    with serving(checkpoint, tmp_path_factory.mktemp("serve") / "streams", lease_seconds=1.0) as one:
        yield one
