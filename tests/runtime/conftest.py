"""A loaded model for tests that ask for videos from Python."""

import pytest

from runtime.pipeline import VideoPipeline


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    with VideoPipeline.from_pretrained(checkpoint, device="cpu") as pipeline:
        yield pipeline
