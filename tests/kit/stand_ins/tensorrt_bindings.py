"""TensorRT's real Python bindings on empty libraries, and stand-ins for what only the libraries can make.

The bindings come as a package of their own, without NVIDIA's libraries, for which empty ones stand in
(`tests/plugins/null_tensorrt.cpp`). The newest version belongs to the development extra; the oldest
supported one is fetched into pytest's cache.
"""

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[3]
NULL = ROOT / "tests" / "plugins" / "null_tensorrt.cpp"
OLDEST = "10.16.1.11"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


def run_with_bindings(version, root, cache, script, *arguments):
    """Run a Python script where `import tensorrt` gives the bindings of a version; None is the newest."""
    shutil.copytree(_bindings(version, cache), root / "tensorrt")
    _null_libraries(root)
    path = os.pathsep.join([str(root), str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"LD_LIBRARY_PATH": str(root), "PYTHONPATH": path}
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _bindings(version, cache):
    """The folder of the bindings of a version, or of the installed ones."""
    if version is None:
        return Path(find_spec("tensorrt_bindings").origin).parent
    return fetched(cache, f"tensorrt-bindings-{version}", f"tensorrt-cu13-bindings=={version}") / (
        "tensorrt_bindings"
    )


def fetched(cache, name, *packages):
    """The folder `name` of pytest's cache with `packages` in it and nothing that they depend on."""
    folder = Path(cache.mkdir("fetched")) / name
    if not folder.exists():
        # Made aside: a fetch that was cut off must not pass for a whole one.
        with TemporaryDirectory(dir=folder.parent) as aside:
            made = Path(aside) / name
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(made)]
            if subprocess.run([*command, *packages], capture_output=True, timeout=200).returncode:
                pytest.skip(f"{packages[0]} cannot be fetched here")
            with suppress(OSError):  # another process was first
                made.rename(folder)
    return folder


def _null_libraries(folder):
    for major in ("10", "11"):
        for library in LIBRARIES:
            name = f"lib{library}.so.{major}"
            command = ["g++", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name)]
            subprocess.run([*command, str(NULL)], check=True, timeout=60)


class StandIn:
    """An object of a real class that speaks by script: whatever is used of it must exist in the class.

    A call must fit a signature in the docstring of the real method, and gives what `script` has under
    `Class.method` (called with the arguments if it can be), or else a stand-in of the class that the
    signature promises; a class in the script stands for an object of it. Only properties that can be set
    may be set; what was set and called is kept in `journal`.
    """

    def __init__(self, trt, kind, script, journal):
        self.__dict__.update(_trt=trt, _kind=kind, _script=script, _journal=journal)

    def __getattr__(self, name):
        member, key = getattr(self._kind, name), f"{self._kind.__name__}.{name}"
        if isinstance(member, property):
            assert key in self._script, f"{key} is read, and the script does not say what it is"
            said = self._script[key]
            return StandIn(self._trt, said, self._script, self._journal) if isinstance(said, type) else said

        def call(*arguments):
            returned = fit(member, name, len(arguments))
            self._journal.append([key, arguments])
            if key in self._script:
                said = self._script[key]
                return said(*arguments) if callable(said) else said
            return StandIn(self._trt, getattr(self._trt, returned), self._script, self._journal)

        return call

    def __setattr__(self, name, value):
        if name == "__class__":
            assert issubclass(value, self._kind)
            self.__dict__["_kind"] = value
            return
        member = getattr(self._kind, name)
        assert isinstance(member, property) and member.fset, f"{self._kind.__name__}.{name} cannot be set"
        self._journal.append([f"{self._kind.__name__}.{name}=", (value,)])

    def __bytes__(self):
        return self._kind.__name__.encode()


def maker(trt, kind, script, journal):
    """What stands in for the constructor of a real class."""

    def make(*arguments):
        fit(kind.__init__, "__init__", len(arguments))
        return StandIn(trt, kind, script, journal)

    return make


def fit(method, name, count):
    """The class that `method` returns if it takes `count` arguments besides itself, by its docstring."""
    signatures = re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> (.+)$", method.__doc__ or "", re.MULTILINE)
    assert signatures, f"{name} has no signature"
    for inside, returned in signatures:
        if inside == "*args, **kwargs":
            continue
        taken = [part for part in re.split(r",\s*(?![^\[]*\])", inside) if part][1:]
        if sum("=" not in part for part in taken) <= count <= len(taken):
            return re.split(r"[.\s]", returned)[-1]
    raise AssertionError(f"{name} does not take {count} arguments: {signatures}")
