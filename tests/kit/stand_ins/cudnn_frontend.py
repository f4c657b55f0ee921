"""cuDNN's real Python frontend, and cuDNN itself over a driver library that answers and does nothing.

The frontend alone, which is small, validates a graph. cuDNN's own libraries, a gigabyte, choose an engine and
compile a plan for a GPU that is only described to them; of the driver they need its functions' names, and
that loading a kernel succeeds. All are fetched into pytest's cache.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from kit.stand_ins.tensorrt_bindings import ROOT, fetched

FRONTEND = "nvidia-cudnn-frontend==1.32.0"
LIBRARIES = ("nvidia-cudnn-cu13==9.20.0.48", "nvidia-cublas==13.1.0.3", "nvidia-cuda-nvrtc==13.0.88")
"""The versions that torch 2.12.1 brings."""
NO_DEVICE = 100
SUCCEED = {"cuLibraryLoadData", "cuLibraryGetKernel", "cuLibraryUnload", "cuKernelSetAttribute",
           "cuKernelGetAttribute", "cuKernelGetFunction", "cuFuncSetAttribute"}  # fmt: skip
"""Functions of the driver that loading a kernel calls; all others say that there is no device."""


def run_with_frontend(cache, script, *arguments):
    """Run a Python script where `import cudnn` gives the frontend without cuDNN; what it wrote."""
    folder = fetched(cache, "cudnn-frontend", FRONTEND)
    return _run(script, arguments, [folder], [])


def run_with_cudnn(cache, root, script, *arguments):
    """Run a Python script with the frontend, cuDNN and a driver library in `root`; what it wrote."""
    folder = fetched(cache, "cudnn", FRONTEND, *LIBRARIES)
    libraries = sorted({path.parent for path in folder.glob("nvidia/**/lib*.so*")})
    _null_driver(root, folder)
    return _run(script, arguments, [folder], [root, *libraries])


def _run(script, arguments, packages, libraries):
    path = os.pathsep.join(map(str, [*packages, ROOT, ROOT / "tests"]))
    environment = os.environ | {"PYTHONPATH": path, "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _null_driver(folder, packages):
    """Compile a `libcuda.so.1` with every name that starts as a driver's function in cuDNN's libraries."""
    names = set()
    for library in Path(packages).glob("nvidia/cudnn/lib/libcudnn_*.so.9"):
        if "precompiled" not in library.name:  # the largest, which hold kernels
            names |= {name.decode() for name in re.findall(rb"\0(cu[A-Z]\w+)(?=\0)", library.read_bytes())}
    functions = "\n".join(
        f"int {name}(void **first) {{ *first = (void *)8; return 0; }}"
        if name in ("cuLibraryLoadData", "cuLibraryGetKernel")
        else f"int {name}(void) {{ return {0 if name in SUCCEED else NO_DEVICE}; }}"
        for name in sorted(names)
    )
    source = folder / "driver.c"
    source.write_text(functions)
    command = [
        "gcc",
        "-shared",
        "-fPIC",
        "-w",
        "-Wl,-soname,libcuda.so.1",
        "-o",
        str(folder / "libcuda.so.1"),
    ]
    subprocess.run([*command, str(source)], check=True, timeout=60)
