"""Has TensorRT or TensorRT-RTX build a plan from an ONNX graph.

The build runs in a process of its own (`export.backends.tensorrt_process`): both libraries abort the process
on some errors, keep state between builds, and hold the weights several times over while they work.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

from export.engine.manifest import Manifest, Signature
from export.engine.target import driver_version
from export.lowering.exclusions import ends
from plugins.errors import UserError
from plugins.triton.tiles import Family, Size, halves

log = logging.getLogger(__name__)

LEVEL = 3
"""TensorRT's default optimization level, of 0 to 5. From 4 on it compiles every candidate kernel."""

PRODUCTS = "left to TensorRT, which multiplies codes where it fuses quantising into a product"
"""How TensorRT multiplies codes, in words."""

BY_SLOT = {"cache": 2, "slot_index": 0}
"""The inputs with a row for each slot, or for each token of one, and the dimension of these rows."""

NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """One engine to build from one graph. Paths are strings, because it is sent to a process as JSON."""

    library: Literal["tensorrt", "tensorrt_rtx"]
    graph: str
    engine: str
    """Path of the plan to write."""
    target: str
    """The GPU architecture, such as `sm_90`; for TensorRT-RTX also several, such as `sm_89,sm_120`."""
    attention_nodes: int = 0
    """Number of nodes of the graph that must become layers of our plugin."""
    fp8_attentions: int = 0
    """Number of attentions of the graph whose softmax must become codes too."""
    kernels: str | None = None
    """Folder of the plugin's kernels (`plugins.aot.compile`); None registers no plugin."""
    size: Size = "compact"
    """Of the plugin's kernel; a `fast` one may take more shared memory than a launch gets unasked."""
    layers: str | None = None
    """File for the record of the engine's layers, which takes a GPU; None writes none."""
    timing_cache: str | None = None
    """File of measured kernel times, read if it exists and written back; None uses none."""
    level: int = LEVEL
    window: dict[str, list[int]] = field(default_factory=dict)
    """Sizes in a full window of the inputs that have a row for each slot that holds a frame, or each of its
    tokens; empty if the graph takes all slots."""


def window_of(manifest: Manifest, program: str) -> dict[str, list[int]]:
    """`BuildRequest.window` of the program called `program`."""
    return {} if manifest.window == "all" else full_window(manifest.programs[program])


def fp8_attentions_of(manifest: Manifest, program: str) -> int:
    """`BuildRequest.fp8_attentions` of the program called `program`: one a quantised block of the step."""
    from export.engine.signature import STEP

    if manifest.attention != "fp8" or program != STEP:
        return 0
    blocks = int(manifest.model["num_layers"])
    return blocks - 2 * ends(blocks)


def full_window(signature: Signature) -> dict[str, list[int]]:
    """Sizes in a full window of the inputs that a step of held slots takes fewer rows of, by name."""
    return {spec.name: list(spec.shape) for spec in signature.inputs if spec.name in BY_SLOT}


def kernel_family(architecture: str) -> Family:
    """The family of the attention plugin's kernels for an architecture; kernels are not forward compatible.

    Raises:
        UserError: if there are no kernels for it.
    """
    for family in get_args(Family):
        if architecture == f"sm_{family}":
            return family  # type: ignore[no-any-return]
    raise UserError(f"the attention plugin has no kernels for {architecture}; use --attention native")


def compile_kernels(
    folder: Path, *, architecture: str, dtype: Literal["bf16", "fp16"], head: int, size: Size = "compact"
) -> None:
    """Compile the attention plugin's kernel of one size, for heads of `head` channels, into `folder`.

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
    variant = KernelVariant(operator="mla_attention", dtype=dtype, size=size, arch=family, widths=widths)
    save(folder, [compile_variant(variant)], {})


def timing_cache(folder: Path, version: str) -> Path | None:
    """The file with kernel times for engines beside the folder `folder`, built by a version of TensorRT here.

    None where the driver's version cannot be told, because times of another driver are then taken for this
    one's.
    """
    import torch

    driver = driver_version()
    if driver is None:
        log.warning("nvidia-smi does not tell the driver's version, so kernel times are not kept")
        return None
    name = timing_cache_name(version=version, gpu=torch.cuda.get_device_name(), driver=driver)
    return folder.parent / ".timing" / name


def timing_cache_name(*, version: str, gpu: str, driver: str, level: int = LEVEL) -> str:
    """Name of the file with kernel times measured by one version and driver on one GPU at one level."""
    gpu, driver = (re.sub(r"[^A-Za-z0-9.]+", "-", text) for text in (gpu, driver))
    return f"tensorrt-{version}-{gpu}-driver{driver}-level{level}.cache"


def build(request: BuildRequest) -> list[str]:
    """Build the engine in a process of its own.

    Returns:
        Warnings of parser and builder.

    Raises:
        UserError: if the build fails, with its last error.
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
