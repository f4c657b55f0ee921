"""AOTInductor packages: compiled code and weights in one `.pt2` file that loads without compiling."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import torch
from torch.export import ExportedProgram

from vmla.errors import UserError


def check_compiler(device: str) -> None:
    """Refuse early where nothing could be compiled.

    Raises:
        UserError: without a C++ compiler, which a GPU's package needs as well, or without the GPU.
    """
    if find_compiler() is None:
        raise UserError("no C++ compiler here, which backend aoti needs; install g++, or use --backend onnx")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here; backend aoti compiles on the GPU that it is for")


def find_compiler() -> str | None:
    """The C++ compiler that Inductor would find."""
    return next((found for name in ("g++", "clang++") if (found := shutil.which(name))), None)


def package(program: ExportedProgram, path: Path) -> None:
    """Compile `program` for the device and processor where its weights lie, into the file `path`."""
    from torch._inductor import aoti_compile_and_package

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of deprecations inside torch itself
        aoti_compile_and_package(program, package_path=str(path))
