"""What is asked of TensorRT and TensorRT-RTX, and what comes back: plans from an ONNX graph.

Building runs in a process of its own (`export.backends.tensorrt_process`): the libraries end the process on
some mistakes, keep state between builds, and hold the weights several times over while they work.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from plugins.errors import UserError
from plugins.triton.tiles import Family, halves

LEVEL = 3
"""How hard TensorRT looks for kernels, of 0 to 5: its default. From 4 on it compiles every candidate."""

PRODUCTS = "left to TensorRT, which multiplies codes where it fuses quantising into a product"
"""What becomes of products of codes, in words."""

NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """One engine to build from one graph; paths are strings, for it travels as JSON."""

    library: Literal["tensorrt", "tensorrt_rtx"]
    graph: str
    engine: str
    """Where it goes."""
    target: str
    """The GPU architecture, as `sm_90`; for TensorRT-RTX also several, as `sm_89,sm_120`."""
    attention_nodes: int = 0
    """So many nodes of the graph must become layers of our plugin."""
    kernels: str | None = None
    """The folder of the plugin's kernels (`plugins.aot.compile`); without it no plugin is registered."""
    layers: str | None = None
    """Where the record of the engine's layers goes, which needs the GPU."""
    timing_cache: str | None = None
    """A file of the times that kernels took, read if it is there and written back."""
    level: int = LEVEL


def kernel_family(architecture: str) -> Family:
    """The kernels of the attention plugin that run on a GPU; they are not forward compatible.

    Raises:
        UserError: if there are none.
    """
    for family in get_args(Family):
        if architecture == f"sm_{family}":
            return family  # type: ignore[no-any-return]
    raise UserError(f"the attention plugin has no kernels for {architecture}; use --attention native")


def compile_kernels(folder: Path, *, architecture: str, dtype: Literal["bf16", "fp16"], head: int) -> None:
    """Compile the attention plugin's kernel for heads of `head` channels into `folder`.

    Raises:
        UserError: if there is none for such heads or such a GPU, or Triton is missing.
    """
    from plugins.aot.compile import compile_variant
    from plugins.aot.objects import save
    from plugins.aot.variants import KernelVariant, Widths

    if halves(head) != (head, 0):
        raise UserError(f"the attention plugin has no kernels for heads of {head}; use --attention native")
    family = kernel_family(architecture)
    widths = Widths(nope=head // 2, rotary=head - head // 2, value=head)  # keys are as wide as values
    variant = KernelVariant(operator="mla_attention", dtype=dtype, size="compact", arch=family, widths=widths)
    save(folder, [compile_variant(variant)], {})


def timing_cache_name(*, version: str, gpu: str, level: int = LEVEL) -> str:
    """The file of the times measured by one version on one GPU at one level."""
    return f"tensorrt-{version}-{re.sub(r'[^A-Za-z0-9]+', '-', gpu)}-level{level}.cache"


def build(request: BuildRequest) -> list[str]:
    """Build what is asked for, in a process of its own.

    Returns:
        The warnings of parser and builder.

    Raises:
        UserError: if they refuse, with their last error.
    """
    command = [sys.executable, "-m", "export.backends.tensorrt_process", json.dumps(asdict(request))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    if done.returncode != 0 or not Path(request.engine).is_file():
        errors = [text for severity, text in messages if severity == "error"]
        said = errors[-1] if errors else (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        what = f"{NAMES[request.library]} cannot build {Path(request.graph).name} for {request.target}"
        raise UserError(f"{what}: {said}")
    return [text for severity, text in messages if severity == "warning"]
