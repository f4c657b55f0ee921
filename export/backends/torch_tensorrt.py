"""Torch-TensorRT: the traced program becomes a TensorRT plan without ONNX, on the GPU that it is for.

Its own converters take the place of exporter and parser. Attention is TensorRT's own: there is no converter
for our plugin. A plan is loaded as TensorRT's are, without Torch-TensorRT. Nothing here has run on a GPU yet:
what is called and with what is checked against the real Python sources of its packages and a stand-in.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.backends.base import Backend, BuildOptions, Program, Requirement
from export.backends.tensorrt_build import LEVEL
from export.engine.manifest import Manifest, Signature
from export.engine.target import NO_GPU, gpu_architecture
from plugins.errors import UserError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

COMPILER = Requirement(modules=("torch_tensorrt",), extra="torch-trt")
LIBRARY = Requirement(modules=("tensorrt",), extra="torch-trt")
OPTIONS: dict[str, Any] = {
    "optimization_level": LEVEL,
    "max_aux_streams": 0,  # a single stream, so that a CUDA graph can capture a pass
    "disable_tf32": True,  # its default, TF32, rounds the inputs of float32 products to 10 bits
    "require_full_compilation": True,  # a plan cannot call PyTorch, so an unsupported operation must fail
    "min_block_size": 1,
    "immutable_weights": True,
}
"""Arguments that are not its defaults, recorded in the manifest."""


class TorchTensorRT(Backend):
    """Builds a TensorRT plan for one GPU and one version of TensorRT, through Torch-TensorRT."""

    name = "torch-tensorrt"
    ending = ".engine"
    requires = (COMPILER, LIBRARY)
    pinned = ("tensorrt",)
    devices = ("cuda",)

    def check(self, options: BuildOptions) -> None:
        """Refuse, besides what every backend refuses, codes with scales, which it has no way to take."""
        super().check(options)
        if options.precision == "fp8":
            raise UserError("backend torch-tensorrt takes no fp8 from here; use --backend tensorrt")

    def check_tools(self, options: BuildOptions) -> None:
        """Refuse a machine without Torch-TensorRT or a GPU."""
        super().check_tools(options)
        if gpu_architecture() == NO_GPU:
            mend = "use --backend tensorrt-rtx, which builds for a named one"
            raise UserError(f"no GPU here, and Torch-TensorRT builds on the GPU that it is for; {mend}")

    def compiler(self, options: BuildOptions) -> dict[str, Any]:
        """The arguments that are not Torch-TensorRT's defaults."""
        return OPTIONS

    def compile(self, name: str, program: ExportedProgram, manifest: Manifest, folder: Path) -> list[str]:
        """Write `NAME.engine`.

        Raises:
            UserError: if Torch-TensorRT fails, with the first line of what it says.
        """
        import torch

        library = COMPILER.imported()
        inputs = [
            library.Input(shape=spec.shape, dtype=getattr(torch, spec.dtype))
            for spec in manifest.programs[name].inputs
        ]
        try:
            plan = library.dynamo.convert_exported_program_to_serialized_trt_engine(
                program, arg_inputs=inputs, device=torch.device("cuda"), **manifest.compiler
            )
        except Exception as error:  # noqa: BLE001 - its converters and passes raise of every kind
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"Torch-TensorRT cannot build {name}: {said}") from error
        (folder / f"{name}{self.ending}").write_bytes(plan)
        return []

    def load(self, folder: Path, name: str, manifest: Manifest) -> Program:
        """Load the plan onto this machine's GPU."""
        from export.loading.tensorrt_plan import load_plan

        path = folder / f"{name}{self.ending}"
        return load_plan(LIBRARY.imported(), path, named_by_place(manifest.programs[name]))


def named_by_place(signature: Signature) -> Signature:
    """`signature` with its outputs called as Torch-TensorRT calls those of a plan: `output0` and so on.

    Inputs keep the names that they have in the program.
    """
    outputs = (replace(spec, name=f"output{place}") for place, spec in enumerate(signature.outputs))
    return replace(signature, outputs=tuple(outputs))
