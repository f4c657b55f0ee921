"""The wheel in an environment of its own: the README's first command, and types for its users."""

import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import av
import pytest
from kit.files.distributions import ROOT, built

pytestmark = pytest.mark.slow

SCRIPT = """\
from runtime import VideoPipeline

with VideoPipeline.from_pretrained("sprites", device="cpu") as pipeline:
    for frames in pipeline("a red star", seconds=5, seed=3):
        reveal_type(frames)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A new environment that holds the wheel; its dependencies are those of the one that runs the tests.

    They come through a .pth file, whose folder's own .pth files Python does not read, so that an editable
    install of this repository stays out.
    """
    folder = tmp_path_factory.mktemp("installed")
    wheel = built(folder).wheel
    place = folder / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", place)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", place / "bin" / "python")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel)
    return place


def run(*words, **settings):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_what_is_imported_is_the_wheel(environment, tmp_path):
    names = "vmla, plugins, export, runtime, bench"
    code = f"import {names}; print(*(m.__file__ for m in ({names})), sep='\\n')"
    found = run(environment / "bin" / "python", "-c", code, cwd=tmp_path, env={}).splitlines()
    assert len(found) == 5 and all(Path(path).is_relative_to(environment) for path in found)


def test_the_first_command_of_the_readme_makes_its_video(environment, tmp_path):
    (line,) = re.findall(r"^pip install \. && (vmla-run .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    program, *arguments = shlex.split(line)
    run(environment / "bin" / program, *arguments, cwd=tmp_path, env={"HOME": str(tmp_path)})
    with av.open(str(tmp_path / "star.mp4")) as file:
        assert sum(packet.size > 0 for packet in file.demux(video=0)) == 3 * 60 * 16


def test_every_command_answers(environment, tmp_path):
    for program in ("vmla-run", "vmla-serve", "vmla-train", "vmla-export", "vmla-bench"):
        assert "Usage:" in run(environment / "bin" / program, "--help", cwd=tmp_path, env={})


def test_types_hold_for_a_user(environment, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    mypy = (sys.executable, "-m", "mypy", "--strict", "--python-executable", environment / "bin" / "python")
    said = run(*mypy, "--cache-dir", tmp_path / "cache", script, cwd=tmp_path)
    assert "Success" in said and "numpy.ndarray" in said
