"""A signal at any step of saving an engine leaves the whole old one or the whole new one, nothing else."""

import gc
import os
import shutil
import signal
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
from click.testing import CliRunner

from export import build as building
from export.settings import Settings
from runtime.cli.export import main
from vmla.weights.checkpoint import Checkpoint, open_checkpoint

pytestmark = pytest.mark.cpu

SAVING = ("export/engine/engine_folder.py", "contextlib.py")
FUNCTIONS = ("build", "build_engine")
"""Saving is what these files and functions do, from the first line of the first file to the last function's
return."""


@pytest.fixture
def quick(checkpoint, monkeypatch):
    """A build of `--batch` 1 or 2 that takes milliseconds: nothing is loaded, traced or compiled."""
    opened = open_checkpoint(checkpoint)
    one = building.describe(opened, Settings(backend="aoti", precision="fp32"))
    wanted = {batch: replace(one, batch=batch) for batch in (1, 2)}

    def compiled(name, program, settings, manifest, folder):
        (folder / f"{name}.pt2").write_text(f"{name} of {settings.batch}")
        return []

    monkeypatch.setattr(building, "describe", lambda opened, settings, given: wanted[settings.batch])
    monkeypatch.setattr(building, "_programs", lambda *arguments: dict.fromkeys(one.programs))
    monkeypatch.setattr(building, "_compiled", compiled)
    monkeypatch.setattr(Settings, "check_tools", lambda settings: None)
    monkeypatch.setattr(Checkpoint, "transformer", lambda opened: _Model())

    def build(folder, batch):
        words = ["build", "--checkpoint", checkpoint, "--backend", "aoti", "--device", "cpu"]
        return CliRunner().invoke(main, [str(word) for word in (*words, "--batch", batch, "-o", folder)])

    return build


class _Model:
    def to(self, device):
        return self


@contextmanager
def a_signal_at(step, number):
    """Inside, the signal comes at the `step`-th line or return of saving; gives those that there were."""
    seen, over = [], []

    def trace(frame, event, _):
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        if over or not (path.endswith(SAVING) or name in FUNCTIONS):
            return None
        if event in ("line", "return") and (seen or path.endswith(SAVING[0])):
            seen.append((path, frame.f_lineno, event))
            over.extend([name] if (name, event) == (FUNCTIONS[-1], "return") else [])
            if len(seen) == step:
                os.kill(os.getpid(), number)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None


@pytest.fixture
def collecting():
    """Collects garbage quickly: what there is now is left out."""
    gc.freeze()
    yield gc.collect
    gc.unfreeze()


@pytest.mark.parametrize("there", [True, False])
def test_a_signal_at_any_step_leaves_one_whole_engine(quick, tmp_path, there, collecting):
    template, place = tmp_path / "templates", tmp_path / "place"
    assert quick(template / "old", 1).exit_code == quick(template / "new", 2).exit_code == 0
    old, new = content(template / "old") if there else None, content(template / "new")
    step, ends = 0, set()
    while True:
        step += 1 if there else 3  # what comes before the two renames is the same
        number = (signal.SIGTERM, signal.SIGINT)[(step + there) % 2]
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if there:
            shutil.copytree(template / "old", place / "engine")
        collecting()  # a generator that a signal has left is closed now, not while another engine is built
        with a_signal_at(step, number) as seen:
            result = quick(place / "engine", 2)
        if len(seen) < step:
            break
        where, found = seen[step - 1], content(place / "engine")
        assert [path.name for path in place.iterdir()] == ([] if found is None else ["engine"]), where
        assert found in (old, new), where
        assert result.exit_code == 128 + number, (where, result.output)
        kept = "is built" if found == new else "is unchanged; run the same command again to build it"
        line = f"stopped by {number.name}; {place / 'engine'} {kept}\n"
        assert result.stderr == line, where
        ends.add(found == new)
    assert result.exit_code == 0 and step > 50
    assert ends == {True, False}
