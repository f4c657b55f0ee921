"""Fixtures that several parts of the suite share."""

import pytest
import torch
from kit.checkpoints import debug_checkpoint


def pytest_configure(config):
    """One thread for each of the processes that run tests side by side: they share the cores."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


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
