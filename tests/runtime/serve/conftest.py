"""One server for all tests that leave it as it was, and what it is compared with."""

import pytest
from kit.processes.serving import serving

from runtime.pipeline import VideoPipeline


@pytest.fixture(scope="package")
def server(checkpoint, tmp_path_factory):
    with serving(checkpoint, tmp_path_factory.mktemp("serve") / "streams", lease_seconds=1.0) as one:
        yield one


@pytest.fixture(scope="module")
def reference(checkpoint, tmp_path_factory):
    """The bytes of a file that nothing interrupted, made on one thread as the server does."""
    path = tmp_path_factory.mktemp("reference") / "video.mp4"
    with VideoPipeline.from_pretrained(checkpoint, device="cpu", threads=1) as pipeline:

        def make(prompt, **asked):
            pipeline.save(prompt, path, overwrite=True, **asked)
            return path.read_bytes()

        yield make
