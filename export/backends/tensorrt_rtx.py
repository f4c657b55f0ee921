"""TensorRT-RTX engines for GeForce and RTX GPUs, built for a named GPU on any machine."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from export.backends.base import Backend, BuildOptions, Offer, Program, Requirement
from export.backends.onnx import EXPORTER, remove_graph, write_graph
from export.backends.tensorrt_build import PRODUCTS, BuildRequest, build, fp8_attentions_of, window_of
from export.engine.manifest import Manifest
from export.engine.target import Host
from plugins.errors import UserError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

LIBRARY = Requirement(modules=("tensorrt_rtx",), extra="trt-rtx")

TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
"""Compute capabilities that TensorRT-RTX 1.7 builds for; sm_90 and sm_100 are not among them."""


class TensorRTRTX(Backend):
    """Builds a plan for one or several GPU architectures, with TensorRT's own attention."""

    name = "tensorrt-rtx"
    ending = ".engine"
    requires = (replace(EXPORTER, extra=LIBRARY.extra), LIBRARY)
    pinned = ("tensorrt_rtx",)
    devices = ("cuda",)
    takes = frozenset({"target"})
    attentions = ("native", "fp8")
    nvfp4 = True

    def check(self, options: BuildOptions) -> None:
        """Refuse targets that TensorRT-RTX does not build for, or that lack the precision."""
        from export.lowering.precision import check_hardware

        super().check(options)
        if options.target is not None:
            check_targets(options.target)
            check_hardware(options.precision, options.target)

    def offer(self, gpu: str, target: str | None) -> Offer | None:
        """Offer to build for a named GPU, as no other backend can, or for this machine's."""
        if target is not None:
            return Offer(reason="which builds for a named GPU", target=target)
        if gpu not in TARGETS or not LIBRARY.installed():
            return None
        return Offer(reason=f"TensorRT-RTX is here, and a GPU that it builds for: {gpu}", target=gpu)

    def products(self, options: BuildOptions) -> str:
        """How engines multiply codes, in words."""
        return PRODUCTS

    def host(self, options: BuildOptions) -> Host:
        """The target's architecture with this machine's package versions."""
        assert options.target is not None
        return replace(super().host(options), architecture=options.target)

    def compile(self, name: str, program: ExportedProgram, manifest: Manifest, folder: Path) -> list[str]:
        """Build `NAME.engine` for all target architectures, in a process of its own."""
        graph = write_graph(name, program, manifest, folder)
        warned = build(
            BuildRequest(
                library="tensorrt_rtx",
                graph=str(graph),
                engine=str(graph.with_suffix(self.ending)),
                target=manifest.host.architecture,
                fp8_attentions=fp8_attentions_of(manifest, name),
                window=window_of(manifest, name),
            )
        )
        remove_graph(graph)
        return warned

    def load(self, folder: Path, name: str, manifest: Manifest) -> Program:
        """Load the plan onto this machine's GPU."""
        from export.loading.tensorrt_plan import load_plan

        return load_plan(LIBRARY.imported(), folder / f"{name}{self.ending}", manifest.programs[name])


def check_targets(targets: str) -> str:
    """Architectures such as `sm_89` or `sm89,sm120` as manifests spell them: `sm_89,sm_120`.

    Raises:
        UserError: for an architecture that TensorRT-RTX does not support, listing those it does.
    """
    spelled = [re.sub(r"^sm_?", "sm_", target.strip()) for target in targets.split(",")]
    for target in spelled:
        if target not in TARGETS:
            known = ", ".join(TARGETS)
            raise UserError(f"TensorRT-RTX builds no engines for {target}; its targets are {known}")
    return ",".join(dict.fromkeys(spelled))
