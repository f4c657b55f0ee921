"""AOTInductor packages: compiled code and weights in one `.pt2` file that loads without compiling."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from plugins.errors import UserError

OPTIONS: dict[str, dict[str, Any]] = {"cpu": {"freezing": True}, "cuda": {}}
"""What Inductor is told beyond its defaults, by device.

Frozen weights are constants, which Inductor lays out for oneDNN while it compiles: linear layers in float32
then use all that the processor has, as those of `runtime.engines.packed_linear` do, which MKL on an AMD
processor does not. Whatever depends on weights alone, codes of fp8 dequantised for instance, is worked out
then too.
"""


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


def package(program: ExportedProgram, path: Path, options: Mapping[str, Any]) -> None:
    """Compile `program` for the device and processor where its weights lie, into the file `path`.

    Args:
        program: in its precision.
        path: ends in `.pt2`.
        options: of Inductor, as in `OPTIONS`.

    Raises:
        UserError: if the C++ compiler fails, with the last that it said.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import CppCompileError

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of deprecations inside torch itself
        try:
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=dict(options))
        except CppCompileError as error:
            said = (error.output.strip().splitlines() or ["it ended without a word"])[-1]
            raise UserError(f"the C++ compiler cannot make {path.name}: {said}") from error
