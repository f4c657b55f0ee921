"""Fixtures that several parts of the suite share."""

import fcntl
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from kit.longest import LONGEST
from kit.tiny.checkpoints import debug_checkpoint


def pytest_configure(config):
    """One thread for each of the processes that run tests side by side: they share the cores."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)
    if hasattr(config.option, "loadscopereorder"):  # xdist would begin with the files of most tests
        config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """The longest files first, everything else in its order."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.split("::")[0], len(rank)))


@pytest.fixture(scope="session")
def built_once(tmp_path_factory, pytestconfig):
    """Makes a file or folder once for all processes that run tests side by side; read only."""
    place = tmp_path_factory.getbasetemp()
    place = (place.parent if hasattr(pytestconfig, "workerinput") else place) / "built-once"
    place.mkdir(exist_ok=True)

    def build(name, make):
        with (place / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
            if not (place / name).exists():
                made = Path(mkdtemp(dir=place)) / name
                make(made)
                made.rename(place / name)
        return place / name

    return build


@pytest.fixture(scope="session")
def checkpoint(built_once):
    """The folder of a tiny model with random weights; read only."""
    return built_once("debug", debug_checkpoint)


@pytest.fixture(scope="session", autouse=True)
def own_data(tmp_path_factory):
    """What the user keeps, engines among it, is nobody's while tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_process_outlives_a_test():
    """No test has an engine built in the background, unless it says so by a starter of its own."""

    def refuse(module, arguments, log):
        raise AssertionError(f"{module} would have been started, and have outlived this test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.cli.background.process.start_detached", refuse)
        yield
