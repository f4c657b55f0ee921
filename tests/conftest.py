"""Fixtures that several parts of the suite share."""

import pytest
from kit.checkpoints import debug_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The folder of a tiny model with random weights; read only."""
    return debug_checkpoint(tmp_path_factory.mktemp("checkpoint") / "debug")
