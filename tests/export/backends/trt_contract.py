"""Drives the building process and the runtime's loader through TensorRT's real bindings; prints it all.

Run with the real bindings on the path and empty libraries loaded (`kit.stand_ins.tensorrt_bindings`).
Builder, parser and runtime are stand-ins that know the real classes; everything else is real. What this shows
is that the code speaks the interface; no engine is built.
"""

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import tensorrt as trt
import torch
from kit.stand_ins.tensorrt_bindings import StandIn, maker

from export.backends import tensorrt_process
from export.backends.tensorrt_build import BuildRequest
from export.engine.manifest import Signature, TensorSpec
from export.loading.tensorrt_plan import PlanProgram

SCRIPT = {
    "OnnxParser.parse_from_file": True,
    "OnnxParser.num_errors": 1,
    "OnnxParser.get_error": "no such operator",
    "INetworkDefinition.num_layers": 3,
    "ILayer.type": trt.LayerType.PLUGIN_V3,
    "ITensor.dtype": trt.float32,
    "IAttentionInputLayer.attention": trt.IAttention,
    "IBuilderConfig.set_timing_cache": True,
    "IBuilderConfig.clear_flag": None,
    "IBuilderConfig.add_optimization_profile": 0,
    "IOptimizationProfile.set_shape": None,
}
SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="x", shape=(2, 3), dtype="bfloat16"),
        TensorSpec(name="n", shape=(1,), dtype="int32"),
    ),
    outputs=(TensorSpec(name="y", shape=(2,), dtype="float32"),),
)
TABLE = {
    "x": (trt.TensorIOMode.INPUT, (2, 3), trt.bfloat16),
    "n": (trt.TensorIOMode.INPUT, (1,), trt.int32),
    "y": (trt.TensorIOMode.OUTPUT, (2,), trt.float32),
}
ENGINE = {
    "ICudaEngine.num_io_tensors": len(TABLE),
    "ICudaEngine.get_tensor_name": lambda place: list(TABLE)[place],
    "ICudaEngine.get_tensor_mode": lambda name: TABLE[name][0],
    "ICudaEngine.get_tensor_shape": lambda name: TABLE[name][1],
    "ICudaEngine.get_tensor_dtype": lambda name: TABLE[name][2],
    "IExecutionContext.set_tensor_address": True,
    "IExecutionContext.execute_async_v3": True,
}


@contextlib.contextmanager
def scripted(journal, script):
    """TensorRT with stand-ins in the place of what its libraries make."""
    real = {name: getattr(trt, name) for name in ("Builder", "OnnxParser", "Runtime")}
    for name, kind in real.items():
        setattr(trt, name, maker(trt, kind, script, journal))
    try:
        yield
    finally:
        for name, kind in real.items():
            setattr(trt, name, kind)


def plain(value):
    """A value for JSON: numbers and texts as they are, enumerators by name, objects by class."""
    if isinstance(value, StandIn) or not hasattr(value, "name"):
        return value if isinstance(value, bool | int | float | str | list) else type(value).__name__
    return value.name


def built(folder, **script):
    """One build: exit status, what was called and set, and the files that it left."""
    folder.mkdir()
    journal = []
    request = BuildRequest(
        library="tensorrt", graph="step.onnx", engine=str(folder / "step.engine"), target="sm_90",
        attention_nodes=script.pop("nodes", 3), fp8_attentions=script.pop("codes", 0),
        layers=str(folder / "layers.json"),
        timing_cache=str(folder / "times" / "a.cache"), window=script.pop("window", {}),
    )  # fmt: skip
    with scripted(journal, SCRIPT | {"EngineInspector.get_engine_information": layers_of(3)} | script):
        status = tensorrt_process.main(BuildRequest(**json.loads(json.dumps(asdict(request)))))
    journal += script.get("journal", [])
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    calls = [[key, [plain(value) for value in values]] for key, values in journal]
    return {"status": status, "calls": calls, "files": files}


def layers_of(plugins):
    layers = [{"LayerType": "PluginV3"}] * plugins + [{"LayerType": "gemm"}]
    return json.dumps({"Layers": layers})


def run(columns=3, **script):
    """One program of a plan, run once, with that many columns in its first input."""
    journal, stream = [], SimpleNamespace(cuda_stream=7, wait_stream=lambda other: None)
    torch.cuda.Stream, torch.cuda.current_stream = lambda: stream, lambda: stream
    with scripted(journal, ENGINE | script):
        try:
            program = PlanProgram(trt, b"plan", SIGNATURE, device="cpu")
            results = program(torch.ones(2, columns, dtype=torch.bfloat16), torch.ones(1, dtype=torch.int32))
        except RuntimeError as error:
            return str(error)
    bound = [values[0] for key, values in journal if key == "IExecutionContext.set_tensor_address"]
    streams = [values[0] for key, values in journal if key == "IExecutionContext.execute_async_v3"]
    return {"bound": bound, "streams": streams, "results": [list(result.shape) for result in results]}


def sizes(*rows, profiles=(((2, 3), (2, 3), (2, 3)), ((2, 0), (2, 1), (2, 3)))):
    """One plan with a size of its own in each run: profiles chosen, shapes stated, results."""
    journal, stream = [], SimpleNamespace(cuda_stream=7, wait_stream=lambda other: None)
    torch.cuda.Stream, torch.cuda.current_stream = lambda: stream, lambda: stream
    open_ended = {
        "ICudaEngine.get_tensor_shape": lambda name: (2, -1) if name == "x" else TABLE[name][1],
        "ICudaEngine.num_optimization_profiles": len(profiles),
        "ICudaEngine.get_tensor_profile_shape": lambda name, place: profiles[place],
    }
    taken = {
        "IExecutionContext.set_optimization_profile_async": True,
        "IExecutionContext.set_input_shape": True,
    }
    with scripted(journal, ENGINE | open_ended | taken):
        program = PlanProgram(trt, b"plan", SIGNATURE, device="cpu")
        held = []
        for count in rows:
            given = torch.arange(2 * count).reshape(2, count).bfloat16()
            try:
                program(given, torch.ones(1, dtype=torch.int32))
            except RuntimeError as error:
                return str(error)
            held.append(torch.equal(program._inputs["x"].view(-1)[: given.numel()], given.view(-1)))
    chosen = [values[0] for key, values in journal if key.endswith(".set_optimization_profile_async")]
    stated = [list(values[1]) for key, values in journal if key.endswith(".set_input_shape")]
    return {"chosen": chosen, "stated": stated, "held": held}


def codes_of(first):
    """A network whose queries come from a layer of that type, by way of the parser's factor, which is 1."""

    def layer(kind, reads, makes):
        said = {"ILayer.type": kind, "ILayer.num_outputs": 1, "ITensor.dtype": trt.bfloat16}
        tensors = {"ILayer.get_input": lambda _: tensor(reads), "ILayer.get_output": lambda _: tensor(makes)}
        return StandIn(trt, trt.ILayer, SCRIPT | said | tensors, journal)

    def tensor(name):
        return SimpleNamespace(name=name, dtype=trt.bfloat16)

    journal = []
    layers = [
        layer(first, "codes", "values"),
        layer(trt.LayerType.ELEMENTWISE, "values", "scaled"),
        layer(trt.LayerType.ATTENTION_INPUT, "scaled", "attended"),
    ]
    return {"INetworkDefinition.get_layer": layers.__getitem__, "codes": 1, "journal": journal}


INPUTS = [
    SimpleNamespace(name="timestep", shape=(1, 3)),
    SimpleNamespace(name="cache", shape=(2, 1, -1, 20)),
    SimpleNamespace(name="slot_index", shape=(-1,)),
]
WINDOW = {"cache": [2, 1, 28, 20], "slot_index": [7]}


def main(folder):
    folder = Path(folder)
    attention = {"ILayer.type": trt.LayerType.ATTENTION_INPUT, "nodes": 0}
    attention |= {"EngineInspector.get_engine_information": layers_of(0)}
    results = {
        "version": trt.__version__,
        "whole": built(folder / "whole"),
        "refused by the parser": built(folder / "parser", **{"OnnxParser.parse_from_file": False}),
        "without plugin": built(folder / "none", **{"ILayer.type": trt.LayerType.MATRIX_MULTIPLY}),
        "plugin lost": built(folder / "lost", **{"EngineInspector.get_engine_information": layers_of(2)}),
        "not built": built(folder / "not", **{"Builder.build_serialized_network": None}),
        "stale times": built(folder / "stale", **{"IBuilderConfig.set_timing_cache": False}),
        "wide attention": built(folder / "wide", **attention),
        "narrow attention": built(folder / "narrow", **attention | {"ITensor.dtype": trt.bfloat16}),
        "attention on codes": built(folder / "codes", **attention | codes_of(trt.LayerType.DEQUANTIZE)),
        "codes elsewhere": built(folder / "elsewhere", **attention | codes_of(trt.LayerType.CAST)),
        "held slots": built(
            folder / "held",
            window=WINDOW,
            **attention
            | {"INetworkDefinition.num_inputs": 3, "INetworkDefinition.get_input": INPUTS.__getitem__},
        ),
        "run": run(),
        "sizes": sizes(3, 3, 1, 0, 3),
        "one profile": sizes(3, 1, 0, 3, profiles=[((2, 0), (2, 3), (2, 3))]),
        "no profile": sizes(0, profiles=[((2, 1), (2, 3), (2, 3))]),
        "static": run(columns=2),
        "no plan": run(**{"Runtime.deserialize_cuda_engine": None}),
        "another table": run(**{"ICudaEngine.get_tensor_shape": lambda name: (9,)}),
        "no address": run(**{"IExecutionContext.set_tensor_address": False}),
        "no run": run(**{"IExecutionContext.execute_async_v3": False}),
    }
    sys.stdout.write("\n" + json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
