"""TensorRT engines, with its own attention or our plugin, built on the GPU that they are for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from export.backends.base import Backend, BuildOptions, Offer, Program, Requirement
from export.backends.onnx import EXPORTER, remove_graph, write_graph
from export.backends.tensorrt_build import (
    PRODUCTS,
    BuildRequest,
    build,
    compile_kernels,
    fp8_attentions_of,
    timing_cache,
    window_of,
)
from export.engine.manifest import Manifest
from export.engine.target import NO_GPU, gpu_architecture
from plugins.errors import UserError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

LIBRARY = Requirement(modules=("tensorrt",), extra="trt")
KERNELS = Requirement(modules=("triton",), extra="gpu")
"""Compiles the plugin's kernels; an engine without the plugin does not need it."""


class TensorRT(Backend):
    """Builds a TensorRT plan for one GPU and one version of TensorRT."""

    name = "tensorrt"
    ending = ".engine"
    requires = (replace(EXPORTER, extra=LIBRARY.extra), LIBRARY, KERNELS)
    pinned = ("tensorrt",)
    devices = ("cuda",)
    takes = frozenset({"tile"})
    attentions = ("native", "plugin", "fp8")
    nvfp4 = True

    def check(self, options: BuildOptions) -> None:
        """Refuse, besides what every backend refuses, the plugin in fp32."""
        super().check(options)
        if (options.attention, options.precision) == ("plugin", "fp32"):
            raise UserError("the attention plugin computes in bf16 and fp16; use --precision bf16")

    def check_tools(self, options: BuildOptions) -> None:
        """Refuse a machine without TensorRT, its GPU, or what the plugin needs."""
        from export.lowering.precision import check_hardware

        for requirement in self.requires:
            if requirement is not KERNELS or self.attention(options) == "plugin":
                requirement.check()
        if (gpu := gpu_architecture()) == NO_GPU:
            mend = "use --backend tensorrt-rtx, which builds for a named one"
            raise UserError(f"no GPU here, and TensorRT builds on the GPU that it is for; {mend}")
        check_hardware(options.precision, gpu)

    def offer(self, gpu: str, target: str | None) -> Offer | None:
        """Offer to build where TensorRT and a GPU are found."""
        if target is not None or gpu == NO_GPU or not LIBRARY.installed():
            return None
        return Offer(reason=f"TensorRT and a GPU, {gpu}, are here")

    def remark(self, options: BuildOptions) -> str | None:
        """The form of attention, if it was chosen by default."""
        if options.attention is not None:
            return None
        return f"attention: {self.attention(options)} (--attention plugin takes our kernel, which is slower)"

    def compiler(self, options: BuildOptions) -> dict[str, Any]:
        """The size of the plugin's kernel, where it is not the usual one."""
        return {"tile": options.tile} if options.tile == "fast" else {}

    def products(self, options: BuildOptions) -> str:
        """How engines multiply codes, in words."""
        return PRODUCTS

    def compile(self, name: str, program: ExportedProgram, manifest: Manifest, folder: Path) -> list[str]:
        """Build `NAME.engine`, and write the record of its layers."""
        graph = write_graph(name, program, manifest, folder)
        with TemporaryDirectory(dir=folder) as scratch:
            warned = build(self.request(name, graph, manifest, Path(scratch)))
        remove_graph(graph)
        return warned

    def request(self, name: str, graph: Path, manifest: Manifest, scratch: Path) -> BuildRequest:
        """The request to build `name` from `graph`; the plugin's kernels are compiled into `scratch`."""
        from export.onnx.attention_node import attention_nodes

        folder, version = graph.parent, manifest.host.versions["tensorrt"]
        nodes, target = attention_nodes(graph), manifest.host.architecture
        size = manifest.compiler.get("tile", "compact")
        if nodes:
            head = manifest.model["attention_head_dim"]
            dtype: Any = "fp16" if manifest.precision == "fp16" else "bf16"
            compile_kernels(scratch, architecture=target, dtype=dtype, head=head, size=size)
        times = timing_cache(folder, version)
        return BuildRequest(
            library="tensorrt",
            graph=str(graph),
            engine=str(graph.with_suffix(self.ending)),
            target=target,
            attention_nodes=nodes,
            fp8_attentions=fp8_attentions_of(manifest, name),
            kernels=str(scratch) if nodes else None,
            size=size,
            layers=str(graph.with_suffix(".layers.json")),
            timing_cache=None if times is None else str(times),
            window=window_of(manifest, name),
        )

    def load(self, folder: Path, name: str, manifest: Manifest) -> Program:
        """Load the plan onto this machine's GPU."""
        from export.loading.tensorrt_plan import load_plan

        return load_plan(LIBRARY.imported(), folder / f"{name}{self.ending}", manifest.programs[name])
