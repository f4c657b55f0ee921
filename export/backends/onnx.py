"""ONNX graphs for ONNX Runtime on a CPU; the TensorRT backends start from the same graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from export.backends.base import Backend, BuildOptions, Offer, Program, Requirement, lacking
from export.engine.manifest import Manifest

if TYPE_CHECKING:
    from torch.export import ExportedProgram

EXPORTER = Requirement(modules=("onnx", "onnxscript"), extra="onnx")
RUNTIME = Requirement(modules=("onnxruntime",), extra="onnx")


class ONNX(Backend):
    """Exports an ONNX graph, which runs on any machine."""

    name = "onnx"
    ending = ".onnx"
    requires = (EXPORTER,)
    portable = True
    attentions = ("native", "plugin", "fp8")

    def offer(self, gpu: str, target: str | None) -> Offer | None:
        """Offer to build where nothing can be compiled."""
        if target is not None:
            return None
        return Offer(reason=f"{lacking(gpu)}, nor a C++ compiler, which aoti would need")

    def products(self, options: BuildOptions) -> str:
        """How engines multiply codes, in words."""
        return "left to what runs the graph; ONNX Runtime multiplies what the codes stand for in float32"

    def compile(self, name: str, program: ExportedProgram, manifest: Manifest, folder: Path) -> list[str]:
        """Write `NAME.onnx`, with weights beside it where they are too large for one file."""
        write_graph(name, program, manifest, folder)
        return []

    def load(self, folder: Path, name: str, manifest: Manifest) -> Program:
        """Open `NAME.onnx` in a session of ONNX Runtime."""
        from export.loading.onnx_session import session

        RUNTIME.imported()
        return session(folder / f"{name}{self.ending}", manifest.programs[name])


def write_graph(name: str, program: ExportedProgram, manifest: Manifest, folder: Path) -> Path:
    """Write the graph of `program`, with attention in the manifest's form, and return its path."""
    from export.onnx import graph

    path = folder / f"{name}{ONNX.ending}"
    graph.save(program, manifest.programs[name], path, attention_nodes=manifest.attention == "plugin")
    return path


def remove_graph(graph: Path) -> None:
    """Delete a graph and the weights beside it, once an engine has been built from it."""
    for part in graph.parent.glob(f"{graph.name}*"):
        part.unlink()
