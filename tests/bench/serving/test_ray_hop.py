"""What Ray adds to a request is measured on a real cluster of this machine."""

from functools import partial

import pytest

from bench.serving.hop import ray_hop
from bench.serving.run import _job_of
from runtime.session.replay import new
from vmla.cluster.library import OF_THIS_MACHINE, QUIET

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray


def test_a_request_takes_longer_through_the_address_of_a_cluster(checkpoint, tmp_path):
    ray.init(num_cpus=2, **QUIET, **OF_THIS_MACHINE)
    try:
        asked = partial(new, "a red star", str(checkpoint), scale=None, seconds=1.0, threads=1)
        found = ray_hop(partial(_job_of, asked), asked().job, tmp_path / "streams", 5)
    finally:
        ray.shutdown()
    assert 0 < found["median_ms"] <= found["worst_ms"]
