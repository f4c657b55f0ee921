"""AOTInductor packages: compiled code and weights in one `.pt2` file that loads without compiling."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.backends.base import Backend, BuildOptions, Offer, Program, lacking
from export.engine.manifest import Manifest
from export.engine.target import gpu_architecture
from plugins.errors import UserError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

OPTIONS: dict[str, dict[str, Any]] = {"cpu": {"freezing": True}, "cuda": {}}
"""What Inductor is told beyond its defaults, by device.

Frozen weights are constants, which Inductor lays out for oneDNN while it compiles: linear layers in float32
then use all that the processor has, as those of `runtime.engines.packed_linear` do, which MKL on an AMD
processor does not. Whatever depends on weights alone, codes of fp8 dequantised for instance, is worked out
then too.
"""


class AOTI(Backend):
    """A library of machine code for one processor or GPU and one version of PyTorch."""

    name = "aoti"
    ending = ".pt2"
    pinned = ("torch",)
    devices = ("cpu", "cuda")
    takes = frozenset({"device"})

    def check_tools(self, options: BuildOptions) -> None:
        """Refuse a machine without a C++ compiler, or without the GPU that is asked for."""
        from export.lowering.precision import check_hardware

        check_compiler(options.device)
        if options.device == "cuda":
            check_hardware(options.precision, gpu_architecture())

    def offer(self, gpu: str, target: str | None) -> Offer | None:
        """Where a C++ compiler is."""
        if target is not None or find_compiler() is None:
            return None
        return Offer(reason=f"{lacking(gpu)}; it runs wherever torch does, and a C++ compiler is here")

    def compiler(self, options: BuildOptions) -> dict[str, Any]:
        """What Inductor is told."""
        return OPTIONS[options.device]

    def products(self, options: BuildOptions) -> str:
        """How an engine multiplies codes, in words."""
        if options.device == "cuda":
            return "torch._scaled_mm multiplies the codes"
        return "simulated: what the codes stand for is multiplied in float32"

    def compile(self, name: str, program: ExportedProgram, manifest: Manifest, folder: Path) -> list[str]:
        """Write `NAME.pt2`."""
        package(program, folder / f"{name}{self.ending}", manifest.compiler)
        return []

    def load(self, folder: Path, name: str, manifest: Manifest) -> Program:
        """On a GPU by PyTorch's own loader: there a call launches kernels and returns at once."""
        from export.loading import aoti_library

        path = folder / f"{name}{self.ending}"
        if manifest.host.device == "cpu":
            return aoti_library.Library(path)
        return aoti_library.loaded_by_torch(path)


def check_compiler(device: str) -> None:
    """Refuse early where nothing could be compiled.

    Raises:
        UserError: without a C++ compiler, which a GPU's package needs as well, or without the GPU.
    """
    import torch

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
    import torch
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import CppCompileError

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of deprecations inside torch itself
        try:
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=dict(options))
        except CppCompileError as error:
            said = (error.output.strip().splitlines() or ["it ended without a word"])[-1]
            raise UserError(f"the C++ compiler cannot make {path.name}: {said}") from error
