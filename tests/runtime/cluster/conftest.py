"""One Ray cluster of this machine for all tests that need one."""

import pytest

from vmla.cluster.library import OF_THIS_MACHINE, QUIET, connect


@pytest.fixture(scope="package")
def cluster():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=8, **QUIET, **OF_THIS_MACHINE)  # as many as tests count, not as there are
    yield connect()
    ray.shutdown()
