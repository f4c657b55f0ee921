"""AOTInductor packages: compiled code and weights in one `.pt2` file that loads without compiling."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.backends.base import Backend, BuildOptions, Offer, Program, lacking
from export.engine.manifest import Manifest
from export.engine.target import gpu_architecture
from plugins.errors import UserError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from export.lowering.regional import Regional

OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {"freezing": True},
    "cuda": {"aot_inductor.compile_wrapper_opt_level": "O0"},
}
"""Inductor's options that are not defaults, by device.

Frozen weights are constants, which Inductor lays out for oneDNN at compile time: float32 linear layers then
use the processor's full vector width, as those of `runtime.engines.layers.packed_linear` do and MKL on AMD
processors does not. Whatever depends only on weights, such as dequantised fp8 codes, is folded then too.

On a GPU the C++ compiler sees the launches alone, of all blocks in one function, which it is not to optimise:
a CUDA graph replays them without it. That it builds faster is expected, not measured.
"""

WEIGHTS = "-weights.safetensors"
"""Ending of the file with the weights of a program's layers, after the program's name."""


FLOAT8_INPUTS = (2, 13)
"""The first PyTorch whose C++ for a CPU may have inputs in float8, as the codes of a shared layer are."""


class AOTI(Backend):
    """Compiles to machine code for one processor or GPU and one version of PyTorch."""

    name = "aoti"
    ending = ".pt2"
    pinned = ("torch",)
    devices = ("cpu", "cuda")
    takes = frozenset({"device", "regional"})

    def usually_regional(self, device: str, precision: str) -> bool:
        """On a GPU, for which a whole large model compiles for minutes.

        On a CPU weights are laid out when they are compiled, which those of a layer that all share cannot be.
        """
        return device == "cuda"

    def check_tools(self, options: BuildOptions) -> None:
        """Refuse a machine without a C++ compiler or the GPU that is asked for, or too old a PyTorch."""
        from export.lowering.precision import check_hardware

        check_compiler(options.device)
        if options.device == "cpu" and options.precision == "fp8" and self.regional(options):
            check_float8_inputs()
        if options.device == "cuda":
            check_hardware(options.precision, gpu_architecture())

    def offer(self, gpu: str, target: str | None) -> Offer | None:
        """Offer to build wherever there is a C++ compiler."""
        if target is not None or find_compiler() is None:
            return None
        return Offer(reason=f"{lacking(gpu)}; it runs wherever torch does, and a C++ compiler is here")

    def compiler(self, options: BuildOptions) -> dict[str, Any]:
        """Inductor's options for the device of `options`."""
        return OPTIONS[options.device]

    def products(self, options: BuildOptions) -> str:
        """How engines multiply codes, in words."""
        if options.device == "cuda":
            return "torch._scaled_mm multiplies the codes"
        return "simulated: what the codes stand for is multiplied in float32"

    def compile(self, name: str, program: ExportedProgram, manifest: Manifest, folder: Path) -> list[str]:
        """Compile the program into `NAME.pt2`."""
        with _eager_attention(manifest):
            package(program, folder / f"{name}{self.ending}", manifest.compiler)
        return []

    def compile_regional(self, name: str, program: Regional, manifest: Manifest, folder: Path) -> list[str]:
        """Compile each part into `NAME-PART.pt2`; the weights go to `NAME-weights.safetensors`."""
        from vmla.weights.formats.files import write_tensors

        with _eager_attention(manifest):
            for part, one in program.parts.items():
                package(one, folder / f"{name}-{part}{self.ending}", manifest.compiler)
        write_tensors(folder / f"{name}{WEIGHTS}", program.weights, {})
        return []

    def files(self, name: str, manifest: Manifest) -> tuple[str, ...]:
        """One package, or one for each part and the weights."""
        from export.engine.signature import PROMPT, STEP, parts_of

        if not manifest.regional:
            return super().files(name, manifest)
        parts = parts_of(name, _layers(name, manifest)) if name in (STEP, PROMPT) else ()
        return (*(f"{name}-{part}{self.ending}" for part in parts), f"{name}{WEIGHTS}")

    def load(self, folder: Path, name: str, manifest: Manifest) -> Program:
        """Load its packages; on a GPU with PyTorch's loader, whose calls launch kernels and return."""
        from export.engine.signature import parts_of
        from export.loading import aoti_library
        from export.loading.regional import RUN, read_layers

        on_cpu = manifest.host.device == "cpu"
        load: Callable[[Path], Program] = aoti_library.Library if on_cpu else aoti_library.loaded_by_torch
        if not manifest.regional:
            return load(folder / f"{name}{self.ending}")
        layers = _layers(name, manifest)
        parts = {part: load(folder / f"{name}-{part}{self.ending}") for part in parts_of(name, layers)}
        return RUN[name](parts, read_layers(folder / f"{name}{WEIGHTS}", manifest.host.device, layers))


def _layers(name: str, manifest: Manifest) -> tuple[str, ...]:
    """The part that runs each layer of the program called `name`."""
    from export.engine.signature import layer_parts

    quantised = manifest.layers.get(manifest.precision, ()) if manifest.quantization is not None else ()
    return layer_parts(name, manifest.model["num_layers"], quantised)


def check_float8_inputs() -> None:
    """Refuse a PyTorch that cannot compile a layer in fp8 for a CPU, given its codes.

    Raises:
        UserError: with what to ask for instead.
    """
    import torch

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < FLOAT8_INPUTS:
        wanted = ".".join(map(str, FLOAT8_INPUTS))
        raise UserError(f"fp8 by layer on a CPU takes PyTorch {wanted} or later; leave --regional out")


def check_compiler(device: str) -> None:
    """Refuse early a machine that cannot compile.

    Raises:
        UserError: if there is no C++ compiler, which GPU packages need too, or no CUDA device for `cuda`.
    """
    import torch

    if find_compiler() is None:
        raise UserError("no C++ compiler here, which backend aoti needs; install g++, or use --backend onnx")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here; backend aoti compiles on the GPU that it is for")


def find_compiler() -> str | None:
    """The C++ compiler that Inductor would use; None if there is none."""
    return next((found for name in ("g++", "clang++") if (found := shutil.which(name))), None)


def _eager_attention(manifest: Manifest) -> AbstractContextManager[None]:
    """Inside, attention becomes a call of the library that the eager engine prefers on this machine."""
    import torch

    from plugins.sdpa import preferred_on

    return preferred_on(torch.device(manifest.host.device))


def package(program: ExportedProgram, path: Path, options: Mapping[str, Any]) -> None:
    """Compile `program` for the device on which it was traced, into the file `path`.

    Args:
        program: already lowered to its precision.
        path: must end in `.pt2`.
        options: Inductor's, as in `OPTIONS`.

    Raises:
        UserError: if the C++ compiler fails, with the last line of its output.
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
