"""Torch-TensorRT: the traced program becomes a TensorRT plan without ONNX, on the GPU that it is for.

Its own converters take the place of exporter and parser. Attention is TensorRT's own, or each is a layer of
our plugin by a converter of ours: the one that Torch-TensorRT would generate hands the plugin the operator's
argument `backend`. A plan is loaded as TensorRT's are, without Torch-TensorRT. Nothing here has run on a GPU
yet: what is called and with what is checked against its real Python code and a stand-in.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from export.backends.base import Backend, BuildOptions, Program, Requirement
from export.backends.tensorrt_build import (
    BY_SLOT,
    LEVEL,
    compile_kernels,
    kernel_family,
    timing_cache,
    window_of,
)
from export.engine.manifest import Manifest, Signature, TensorSpec
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
ATTENTION = "vmla.mla_attention.default"
FACE = "mla_attention"
"""The operator as a node's target is written, and the plugin's name."""


class TorchTensorRT(Backend):
    """Builds a TensorRT plan for one GPU and one version of TensorRT, through Torch-TensorRT."""

    name = "torch-tensorrt"
    ending = ".engine"
    requires = (COMPILER, LIBRARY)
    pinned = ("tensorrt",)
    devices = ("cuda",)
    attentions = ("native", "plugin")

    def check(self, options: BuildOptions) -> None:
        """Refuse, besides what every backend refuses, codes with scales, and the plugin in fp32."""
        super().check(options)
        if (options.attention, options.precision) == ("plugin", "fp32"):
            raise UserError("the attention plugin computes in bf16 and fp16; use --precision bf16")
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
        """Write `NAME.engine`. TensorRT takes one build with the plugin to a process.

        Raises:
            UserError: if Torch-TensorRT fails, with the first line of what it says.
        """
        import torch

        library, converted = COMPILER.imported(), list[str]()
        program = decomposed_attention(program, whole=manifest.attention == "plugin")
        if nodes := sum(str(node.target) == ATTENTION for node in program.graph.nodes):
            _register_plugin(manifest)
            convert_attention(converted)
        held = window_of(manifest, name)
        inputs = [
            library.Input(**sizes(spec, held), dtype=getattr(torch, spec.dtype))
            for spec in manifest.programs[name].inputs
        ]
        given = {"arg_inputs": inputs, "device": torch.device("cuda"), **manifest.compiler}
        with TemporaryDirectory() as scratch:
            # By default it keeps kernel times of all GPUs and drivers in one file, which all users may write.
            times = timing_cache(folder, manifest.host.versions["tensorrt"]) or Path(scratch) / "times"
            try:
                plan = library.dynamo.convert_exported_program_to_serialized_trt_engine(
                    program, timing_cache_path=str(times), **given
                )
            except Exception as error:  # noqa: BLE001 - its converters and passes raise of every kind
                said = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise UserError(f"Torch-TensorRT cannot build {name}: {said}") from error
        if len(converted) != nodes:
            said = f"it made {len(converted)} layers of the plugin for {nodes} attentions"
            raise UserError(f"Torch-TensorRT cannot build {name}: {said}")
        (folder / f"{name}{self.ending}").write_bytes(plan)
        return []

    def load(self, folder: Path, name: str, manifest: Manifest) -> Program:
        """Load the plan onto this machine's GPU."""
        from export.loading.tensorrt_plan import load_plan

        path = folder / f"{name}{self.ending}"
        return load_plan(LIBRARY.imported(), path, named_by_place(manifest.programs[name]))


def sizes(spec: TensorSpec, held: Collection[str]) -> dict[str, tuple[int, ...]]:
    """The sizes of an input as Torch-TensorRT's `Input` takes them: fixed, or a range for those in `held`.

    The range is from no slot to all of them, and kernels are chosen for all, as in all but a video's first
    chunks. Torch-TensorRT makes one profile, so a full window has none of its own here.
    """
    if spec.name not in held:
        return {"shape": spec.shape}
    none = tuple(0 if axis == BY_SLOT[spec.name] else size for axis, size in enumerate(spec.shape))
    return {"min_shape": none, "opt_shape": spec.shape, "max_shape": spec.shape}


def decomposed_attention(program: ExportedProgram, *, whole: bool) -> ExportedProgram:
    """`program` with our operators taken apart, for Torch-TensorRT decomposes PyTorch's alone.

    Attention is left `whole` for the plugin. A program without our operators is returned as it is.
    """
    import torch

    from plugins import sdpa

    def expand(*arguments: Any, backend: str = "auto") -> Any:
        return sdpa.expand(*arguments)

    def attention(*arguments: Any, scales: None = None, backend: str = "auto") -> Any:
        return sdpa.attention(*arguments)

    table: dict[Any, Any] = {torch.ops.vmla.expand.default: expand}
    if not whole:
        table[torch.ops.vmla.mla_attention.default] = attention
    ours = any(node.target in table for node in program.graph.nodes)
    return program.run_decompositions(table) if ours else program


def _register_plugin(manifest: Manifest) -> None:
    """Compile our attention's kernel for the engine's GPU, and register the plugin with TensorRT."""
    from plugins.aot.tensorrt_plugin import register

    target = manifest.host.architecture
    dtype: Any = "fp16" if manifest.precision == "fp16" else "bf16"
    with TemporaryDirectory() as folder:
        head = manifest.model["attention_head_dim"]
        compile_kernels(Path(folder), architecture=target, dtype=dtype, head=head)
        register(Path(folder), kernel_family(target), only=[FACE])


def convert_attention(converted: list[str]) -> None:
    """Let Torch-TensorRT make each attention a layer of our plugin, which must be registered.

    `converted` gets the name of each node that becomes one.
    """
    import tensorrt.plugin as plugins_of_tensorrt
    import torch
    from torch_tensorrt.dynamo.conversion import dynamo_tensorrt_converter
    from torch_tensorrt.dynamo.conversion.converter_utils import get_trt_tensor

    import plugins  # noqa: F401 - defines the operator

    def convert(context: Any, target: Any, args: Any, kwargs: Any, name: str) -> Any:
        given = [get_trt_tensor(context, tensor, f"{name}_{place}") for place, tensor in enumerate(args[:4])]
        plugin = plugins_of_tensorrt.op.vmla.mla_attention(*given)
        layer = context.net.add_plugin(plugin, aot=True)
        layer.name = name
        converted.append(name)
        return layer.get_output(0)

    dynamo_tensorrt_converter(torch.ops.vmla.mla_attention.default)(convert)


def named_by_place(signature: Signature) -> Signature:
    """`signature` with its outputs called as Torch-TensorRT calls those of a plan: `output0` and so on.

    Inputs keep the names that they have in the program.
    """
    outputs = (replace(spec, name=f"output{place}") for place, spec in enumerate(signature.outputs))
    return replace(signature, outputs=tuple(outputs))
