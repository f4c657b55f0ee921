"""Two builds of one engine at once: the second waits for the first, and builds if that gave nothing."""

import signal
import time
from contextlib import ExitStack, suppress

import pytest
from kit.processes.commands import Commands

from plugins.documents.lock import lock_path, locked

pytestmark = pytest.mark.cpu

BUILD = """
import os, sys, time
from export.backends import aoti
from runtime.cli.export import main as export
def package(program, path, options):
    path.write_text("compiled")
    open({here!r} + str(os.getpid()), "w").close()
    while not os.path.exists({go!r}):
        time.sleep(0.01)
aoti.package = package
aoti.AOTI.check_tools = lambda self, options: None
sys.argv = ["vmla-export", "build", *{words!r}]
export()
"""
"""A build whose compiler says that it is under way, and then waits for a file."""


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    with Commands(tmp_path_factory.mktemp("commands")) as started:
        yield started


@pytest.fixture
def go(tmp_path):
    return tmp_path / "go"


@pytest.fixture
def start(commands, checkpoint, tmp_path, go):
    """Starts a build in a folder `deep/engine` that does not exist yet; those that are left are killed."""
    with ExitStack() as stack:

        def started(*more):
            words = ["--checkpoint", str(checkpoint), "--backend", "aoti", "--device", "cpu"]
            words += ["-o", str(tmp_path / "deep" / "engine"), *more]
            build = BUILD.format(here=str(tmp_path / "here-"), go=str(go), words=words)
            run = commands.start(before=build)
            stack.callback(end, run)
            return run

        yield started


def end(run):
    with suppress(FileNotFoundError):  # it was waited for
        if run.running():
            run.send()


def until(condition, *runs):
    ends = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < ends and all(run.running() for run in runs), [run.said() for run in runs]
        time.sleep(0.01)


def begun(run, tmp_path):
    until((tmp_path / f"here-{run.pid}").exists, run)
    return run


def waiting(run, process, tmp_path):
    """The run, once it has said that it waits for `process`."""
    folder = tmp_path / "deep" / "engine"
    line = f"{folder} is being made already (process {process}); waiting until that is done"
    until(lambda: line in run.said().splitlines(), run)
    return run


def test_the_second_waits_and_takes_what_the_first_has_built(start, go, tmp_path):
    first = begun(start(), tmp_path)
    second = waiting(start(), first.pid, tmp_path)
    time.sleep(0.2)
    assert second.running() and not (tmp_path / f"here-{second.pid}").exists()
    go.touch()
    (one, built), (other, taken) = first.wait(), second.wait()
    folder = tmp_path / "deep" / "engine"
    assert (one, other) == (0, 0), (built, taken)
    assert f"{folder}: built" in built and f"{folder}: unchanged" in taken and "waiting" not in built
    assert list(folder.parent.iterdir()) == [folder]
    with locked(folder):  # what is there is taken without a lock, so in a read-only folder too
        status, said = start().wait()
    assert status == 0 and f"{folder}: unchanged" in said and "waiting" not in said, said


def test_one_that_is_killed_leaves_the_build_to_whoever_waits(start, go, tmp_path):
    first = begun(start(), tmp_path)
    second = waiting(start(), first.pid, tmp_path)
    first.send(signal.SIGKILL)
    first.wait()
    begun(second, tmp_path)
    go.touch()
    status, said = second.wait()
    folder = tmp_path / "deep" / "engine"
    assert status == 0 and f"{folder}: built" in said, said
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_that_waits_leaves_at_once_if_it_is_asked_to(start, go, tmp_path, number):
    folder = tmp_path / "deep" / "engine"
    first = begun(start(), tmp_path)
    second = waiting(start(), first.pid, tmp_path)
    began = time.monotonic()
    second.send(number)
    status, said = second.wait()
    assert time.monotonic() - began < 5  # and not the ten seconds after which a signal ends whatever blocks
    assert status == 128 + number
    last = said.splitlines()[-1]
    assert last == f"stopped by {number.name}; the other process goes on with {folder}"
    assert lock_path(folder).exists() and first.running()
    go.touch()
    assert first.wait()[0] == 0
    assert list(folder.parent.iterdir()) == [folder]


def test_an_engine_with_other_settings_is_built_after_the_first(start, go, tmp_path):
    first = begun(start(), tmp_path)
    second = waiting(start("--batch", "2"), first.pid, tmp_path)
    go.touch()
    assert first.wait()[0] == 0
    status, said = second.wait()
    assert status == 0 and f"{tmp_path / 'deep' / 'engine'}: built" in said, said


def test_a_build_in_the_background_is_waited_for_and_other_folders_are_not(start, go, tmp_path):
    folder = tmp_path / "deep" / "engine"
    folder.parent.mkdir()
    with locked(folder):  # as `runtime.cli.background_build` holds it
        run = start()
        until(lambda: "waiting until that is done" in run.said(), run)
        other = start("-o", str(tmp_path / "deep" / "another"))
        go.touch()
        status, said = other.wait()
        assert status == 0 and "waiting" not in said, said
        assert run.running()
    assert run.wait()[0] == 0
