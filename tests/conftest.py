"""Fixtures that several parts of the suite share."""

import pytest
from kit.checkpoints import debug_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The folder of a tiny model with random weights; read only."""
    return debug_checkpoint(tmp_path_factory.mktemp("checkpoint") / "debug")


@pytest.fixture(scope="session", autouse=True)
def own_data(tmp_path_factory):
    """What the user keeps, engines among it, is nobody's while tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield
