"""The published model's step as an ONNX graph and as TensorRT-RTX engines, on any machine.

    vmla-bench graph --shape wan-1.3b
    vmla-bench graph --shape wan-1.3b --target sm_89 --target sm_120 --output bench/results/graph-wan.json
    vmla-bench graph --shape wan-1.3b --precision fp8 --lint

The model is traced without weights. Without a target the file of weights is sparse: the graph is checked
and takes no room on disk. With targets, weights are drawn at random, scaled like real ones and written to
disk one at a time, and an engine is built for each target. The graph is the one that engines are built from:
it takes the slots that hold a frame and masks nothing, which is checked. `--attention plugin` exports the
form for our plugin, which takes all slots with their validity. With `--lint` the graph is the one for ONNX
Runtime, with float32 in place of bfloat16, and Polygraphy's lint checks it and runs it once: in fp8 even at
full size, because its weights are then less than the 2 GB that Polygraphy can hold. The last line is JSON:
time, memory, sizes, warnings.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, cast, get_args

import click
import torch
from torch import Tensor

from bench.harness.document import Record
from export.backends.onnx import ONNX
from export.backends.tensorrt import TensorRT
from export.backends.tensorrt_build import BuildRequest, full_window
from export.backends.tensorrt_build import build as build_plan
from export.backends.tensorrt_rtx import check_targets
from export.build import joins_products, lower, step_window
from export.engine.manifest import Attention, Signature
from export.engine.signature import STEP, contract
from export.layers import attention_inputs, by_precision
from export.lowering.calibration import ATTENDED
from export.lowering.fp8 import input_scale, quantize
from export.lowering.precision import DTYPES, Precision, check_precision
from export.lowering.trace import fake_model, trace_step
from export.onnx import graph as onnx
from export.onnx.attention_node import attention_nodes as count_attention_nodes
from export.onnx.attention_node import quantized_attentions
from export.onnx.external_weights import Source
from export.onnx.masks import masks
from export.settings import Settings
from plugins.errors import UserError
from vmla.cli.command import OneLineCommand
from vmla.cli.machine import peak_resident_bytes
from vmla.cli.options.choices import Choice
from vmla.cli.terminal import say
from vmla.config import MODEL_CONFIGS, ModelConfig, named_config
from vmla.fused_attention import fused
from vmla.transformer import VideoMLA

CODES = torch.float8_e4m3fn
LARGEST_INPUT = 8.0
"""Largest input of every quantised layer, as a calibration would find it, since inputs are normalised."""
LARGEST_DRAWN = 5.0
"""Standard deviations of the random weights that the range of their codes covers."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph file's inputs, outputs, operators and types; its weights are only counted."""

    inputs: dict[str, list[int | str]]
    """Sizes by name; a dynamic one, the number of filled slots, is a name."""
    outputs: dict[str, list[int | str]]
    attention_nodes: int
    masks: list[str]
    """Nodes and inputs that compute or take validity (`export.onnx.masks`)."""
    operations: dict[str, int]
    types: list[str]
    weights: int
    """Number of parameters, counted without reading them."""

    @classmethod
    def read(cls, path: Path) -> Graph:
        """Read the ONNX graph in `path`."""
        from onnx import TensorProto, load

        model = load(str(path), load_external_data=False)
        graph = model.graph
        values = [*graph.input, *graph.output, *graph.value_info]
        types = {value.type.tensor_type.elem_type for value in values}
        types |= {weight.data_type for weight in graph.initializer}
        shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        return cls(
            inputs={value.name: shapes[value.name] for value in graph.input},
            outputs={value.name: shapes[value.name] for value in graph.output},
            attention_nodes=count_attention_nodes(path),
            masks=masks(model),
            operations=dict(sorted(Counter(node.op_type for node in graph.node).items())),
            types=sorted(TensorProto.DataType.Name(kind) for kind in types),
            weights=sum(torch.Size(weight.dims).numel() for weight in graph.initializer),
        )


def export_graph(
    config: ModelConfig,
    precision: Precision,
    path: Path,
    *,
    weights: Source,
    attention: Attention = "native",
    backend: str = TensorRT.name,
) -> Graph:
    """Write the step of a model of `config` to `path` as the engines of `backend` have it, weights left out.

    The base of a quantised graph is bfloat16, and float32 for the backend `onnx`.

    Raises:
        UserError: if the graph is not in the form asked for: an attention node a layer for `plugin`, neither
            nodes nor masks for `native`, and codes in the quantised blocks for `fp8`.
    """
    settings = Settings(backend=backend, precision=precision, attention=attention)
    narrow = str(DTYPES[settings.base]).removeprefix("torch.")
    signature = contract(config, batch=1, narrow=narrow)[STEP]
    layers = by_precision(config, settings)[precision] if settings.quantized else ()
    attended = attention_inputs(config, settings)
    largest = dict.fromkeys((*layers, *attended), LARGEST_INPUT)
    window, joined = step_window(config, attention), joins_products(settings)
    program = trace_step(fake_model(config), batch=1, window=window, joined=joined, apart=layers)
    program = lower(program, signature, settings, largest)
    onnx.save(program, signature, path, attention_nodes=attention == "plugin", weights=weights)
    graph = Graph.read(path)
    _check_form(graph, config.num_layers if attention == "plugin" else 0, masked=window == "all")
    if (found := quantized_attentions(path)) != len(attended) // len(ATTENDED):
        raise UserError(f"the graph has {found} attentions on codes, not {len(attended) // len(ATTENDED)}")
    return graph


def _check_form(graph: Graph, attention_nodes: int, *, masked: bool) -> None:
    """Refuse a graph that has another number of attention nodes, or masks without a reason."""
    if graph.attention_nodes != attention_nodes:
        raise UserError(f"the graph has {graph.attention_nodes} attention nodes, not {attention_nodes}")
    if graph.masks and not masked:
        raise UserError(f"the graph takes the slots that hold a frame, and yet masks: {graph.masks[0]}")


def holes(config: ModelConfig) -> Source:
    """Zeros that take no room on disk, and the real frequencies of the positions."""
    frequencies = _frequencies(config)
    return lambda name, like: frequencies.get(name)


def random_weights(config: ModelConfig) -> Source:
    """Numbers scaled like real ones: matrices by the root of their width, gains of 1, biases of 0.

    Of an fp8 graph, codes of such matrices and the scale that goes with them. Joined products are drawn
    whole, without the fixed values that real ones contain.
    """
    generator, frequencies = torch.Generator().manual_seed(0), _frequencies(config)
    with torch.device("meta"):
        model = VideoMLA(config)
        parameters = {**dict(model.named_parameters()), **dict(fused(model).named_parameters())}

    def draw(name: str, like: Tensor) -> Tensor:
        if name in frequencies:
            return frequencies[name]
        matrix = parameters.get(name.removesuffix("_scale"))
        if matrix is None:
            raise ValueError(f"{name} is not a weight of the model")
        if name not in parameters:
            return torch.full(like.shape, _scale(matrix), dtype=like.dtype)
        if like.ndim < 2:
            return torch.full(like.shape, float(name.endswith("weight")), dtype=like.dtype)
        drawn = torch.randn(like.shape, generator=generator) / like.shape[-1] ** 0.5
        return quantize(drawn, _scale(matrix)) if like.dtype == CODES else drawn.to(like.dtype)

    return draw


def _scale(matrix: Tensor) -> float:
    """The scale that codes of a random matrix [out, in] have."""
    return input_scale(LARGEST_DRAWN / matrix.shape[-1] ** 0.5)


def _frequencies(config: ModelConfig) -> dict[str, Tensor]:
    """The model's tables (buffers), which are not parameters."""
    return {f"rope.{name}": table for name, table in VideoMLA.rotary(config).named_buffers()}


POLYGRAPHY = "import sys; from polygraphy.tools import main; sys.exit(main())"


def faults(path: Path, signature: Signature) -> dict[str, Any]:
    """The warnings and errors of Polygraphy's lint about the graph in `path`, in a full window.

    `signature` has the sizes of the graph's inputs: Polygraphy takes 1 for a size that is not static, and
    one slot is not as many as one token.

    Raises:
        UserError: if Polygraphy ends without a report.
    """
    began = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "lint.json"
        shapes = [f"{spec.name}:{json.dumps(spec.shape, separators=(',', ':'))}" for spec in signature.inputs]
        command = [sys.executable, "-c", POLYGRAPHY, "check", "lint", str(path), "-o", str(report)]
        command += ["--input-shapes", *shapes]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not report.is_file():
            last = (done.stderr or done.stdout).strip().rpartition("\n")[2]
            raise UserError(f"Polygraphy made no report ({last}); is the extra dev installed?")
        found = json.loads(report.read_text())
    entries = [entry for entry in found["lint_entries"] if entry["level"] != "info"]
    passing, failing = (sorted(found["summary"][name]) for name in ("passing", "failing"))
    say(f"lint: {len(passing)} nodes pass, {len(failing)} fail, {len(entries)} entries")
    return {
        "entries": entries,
        "passing": len(passing),
        "failing": failing,
        "seconds": round(perf_counter() - began, 1),
        "peak_bytes": peak_resident_bytes(children=True),
    }


@click.command(cls=OneLineCommand, groups={
    "What is exported": ("shape", "layers", "precision", "attention"),
    "What is made of it": ("target", "lint", "folder", "output"),
})  # fmt: skip
@click.option("--shape", type=Choice(MODEL_CONFIGS), default="wan-1.3b", show_default=True,
              help="Named shape of the model.")  # fmt: skip
@click.option(
    "--layers",
    type=click.IntRange(min=1),
    help="Number of the model's layers (default: as many as the shape has).",
)
@click.option("--precision", type=Choice(get_args(Precision)), default="bf16", show_default=True,
              help="Precision of the matrix products.")  # fmt: skip
@click.option("--target", multiple=True, help="Build a TensorRT-RTX engine for this GPU, as sm_89.")
@click.option("--attention", type=Choice(get_args(Attention)), default="native", show_default=True,
              help="Form of self-attention: an operation, a node for our plugin, or an operation on "
              "float8 codes.")  # fmt: skip
@click.option("--lint", is_flag=True, help="Have Polygraphy look for faults; needs the extra dev.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False),
              help="Folder that keeps graph and engines (default: they are removed).")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/graph.json).")  # fmt: skip
def main(
    shape: str,
    layers: int | None,
    precision: str,
    target: tuple[str, ...],
    attention: Attention,
    lint: bool,
    folder: Path | None,
    output: Path | None,
) -> None:
    """Export a model of a named shape without weights, or build engines with random ones."""
    for each in target:
        check_targets(each)
    if target and attention == "plugin":
        raise UserError("TensorRT-RTX has its own attention; leave --attention or --target out")
    config, kind = named_config(shape), check_precision(precision)
    if layers is not None:
        config = replace(config, num_layers=layers)
    record = Record("graph", output)
    record.save(shape=shape, layers=config.num_layers, precision=precision)
    with tempfile.TemporaryDirectory() as scratch:
        place = folder or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        backend = ONNX.name if lint else TensorRT.name
        for found in measure(config, kind, target, place, backend, attention):
            record.save(**found)
        if lint:
            record.save(lint=faults(place / "step.onnx", contract(config, batch=1)[STEP]))
    told = ("graph", "engines", "lint")
    record.finish(**{name: record.document[name] for name in told if name in record.document})


def measure(
    config: ModelConfig, precision: Precision, targets: tuple[str, ...], place: Path, backend: str,
    attention: Attention,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Time and memory of the graph, then of an engine for each target, all in the folder `place`."""
    began = perf_counter()
    source = random_weights(config) if targets else holes(config)
    path = place / "step.onnx"
    graph = export_graph(config, precision, path, attention=attention, weights=source, backend=backend)
    figures: dict[str, Any] = {
        "graph": {
            "seconds": round(perf_counter() - began, 1),
            "peak_bytes": peak_resident_bytes(),
            "file_bytes": path.stat().st_size,
            "weight_bytes": path.with_name(f"{path.name}.data").stat().st_size,
            **vars(graph),
        }
    }
    say(f"graph: {figures['graph']['seconds']} s, peak {peak_resident_bytes() / 2**20:,.0f} MiB")
    engines: list[dict[str, Any]] = []
    yield figures | {"engines": engines}
    for target in targets:
        engines.append(_engine(path, target, full_window(contract(config, batch=1, narrow="bfloat16")[STEP])))
        yield {"engines": engines}


def _engine(graph: Path, target: str, window: dict[str, list[int]]) -> dict[str, Any]:
    """Build one engine, whose full window has these sizes; the peak is that of the largest build so far."""
    began, engine = perf_counter(), graph.with_name(f"step-{target}.engine")
    request = BuildRequest(library="tensorrt_rtx", graph=str(graph), engine=str(engine), target=target,
                           fp8_attentions=quantized_attentions(graph), window=window)  # fmt: skip
    warnings = build_plan(request)
    told = {
        "target": target,
        "seconds": round(perf_counter() - began, 1),
        "peak_bytes": peak_resident_bytes(children=True),
        "engine_bytes": engine.stat().st_size,
        "warnings": warnings,
    }
    say(f"{target}: {told['seconds']} s, peak {cast(int, told['peak_bytes']) / 2**20:,.0f} MiB")
    return told
