"""The distributions of what is tracked: the source, and the wheel that is built from it."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


class Distributions(NamedTuple):
    sdist: Path
    wheel: Path


def tracked():
    """Every file that git knows and that is there, relative to the repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(path for path in map(Path, listed.stdout.split("\0")[:-1]) if (ROOT / path).is_file())


def built(folder):
    """Both distributions: the wheel from the unpacked source distribution, as pip and `python -m build` do.

    The source is a copy, so that nothing that lies about in the working tree helps or gets in.
    """
    tree, out = folder / "tree", folder / "out"
    for path in tracked():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tree / path)
    run_backend("build_sdist", tree, out)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    run_backend("build_wheel", unpacked, out)
    (wheel,) = out.glob("*.whl")
    return Distributions(sdist, wheel)


def run_backend(what, source, out):
    command = [sys.executable, "-c", BUILD, what, str(out)]
    out.mkdir(exist_ok=True)
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
