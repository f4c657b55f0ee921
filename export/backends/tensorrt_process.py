"""The process that builds one TensorRT(-RTX) engine: `python -m export.backends.tensorrt_process REQUEST`.

It is the only module of this package that imports either library, under the name `trt`. It calls the library
directly rather than through Polygraphy, whose builder configuration sets what would have to be undone (a
timing cache of its own, precision flags that TensorRT 11 no longer has). Messages are printed as lines of
JSON, `["warning", text]`.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from export.backends.tensorrt_build import BuildRequest, kernel_family
from plugins.atomic_files import atomic_write_bytes
from plugins.errors import UserError

SOFTMAX_UNIT = 1 / 448
"""What a unit of the softmax's codes stands for: its largest weight, 1, becomes 448, the largest number of
float8_e4m3fn, which `export.lowering.fp8.LARGEST` tells those who load PyTorch anyway."""


def main(request: BuildRequest) -> int:
    """Parse the graph, build the engine and write it; return the exit status."""
    trt = importlib.import_module(request.library)
    logger = _logger(trt)
    if request.kernels is not None:
        _register(request)
    # Strongly typed: the graph's own types count, which `export.lowering.precision` has chosen.
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)  # holds the weights until the engine is built
    if not parser.parse_from_file(request.graph):
        for number in range(parser.num_errors):
            _say("error", str(parser.get_error(number)))
        return 1
    if not _has_plugins(trt, network, request.attention_nodes):
        return 1
    _decompose_wide_attention(trt, network)
    scale = np.array(SOFTMAX_UNIT, np.float32)  # the network reads it until the engine is built
    wanted = request.fp8_attentions
    if wanted and not _quantize_softmax(trt, network, trt.Weights(scale), wanted):
        return 1
    config = configure(trt, builder, request)
    _add_profiles(builder, network, config, request)
    plan = builder.build_serialized_network(network, config)
    if plan is None:  # the build failed; an exception in a plugin goes to stderr
        return 1
    content = bytes(plan)
    _save_timing_cache(config, request)
    if request.layers is not None and not _record_layers(trt, logger, content, request):
        return 1
    Path(request.engine).write_bytes(content)
    return 0


def configure(trt: Any, builder: Any, request: BuildRequest) -> Any:
    """The builder's configuration for `request`."""
    config = builder.create_builder_config()
    if request.library == "tensorrt_rtx":
        targets = request.target.replace("_", "").upper().split(",")
        config.num_compute_capabilities = len(targets)
        for place, target in enumerate(targets):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, target), place):
                raise UserError(f"it takes no target {target}")
        return config
    config.builder_optimization_level = request.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # otherwise the inspector knows only names
    config.max_aux_streams = 0  # one stream: less scratch memory, and a graph can be captured
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 layers shall compute in float32
    if request.timing_cache is not None:
        path = Path(request.timing_cache)
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        if not config.set_timing_cache(cache, False):  # False: refuse one of another GPU or version
            _say("warning", f"{path.name} does not fit and is made anew")
    return config


def _add_profiles(builder: Any, network: Any, config: Any, request: BuildRequest) -> None:
    """Two profiles of one network: a full window, whose sizes are then static, and any that is not full."""
    if not request.window:
        return
    slots = request.window["slot_index"][0]
    for least, usual in ((slots, slots), (0, slots // 2)):
        profile = builder.create_optimization_profile()
        for tensor in map(network.get_input, range(network.num_inputs)):
            if tensor.name in request.window:
                full = request.window[tensor.name]
                sizes = (_with_slots(tensor.shape, full, slots, count) for count in (least, usual, slots))
                profile.set_shape(tensor.name, *sizes)
        if config.add_optimization_profile(profile) < 0:
            raise UserError(f"it takes no profile of {least} to {slots} slots")


def _with_slots(shape: Any, full: list[int], slots: int, count: int) -> list[int]:
    """`shape`, in which -1 stands for as many as `count` of the `slots` that `full` is for have."""
    return [size // slots * count if given == -1 else size for given, size in zip(shape, full, strict=True)]


def _register(request: BuildRequest) -> None:
    """Register the attention plugin with the kernels compiled for this engine."""
    from plugins.aot.tensorrt_plugin import register

    family, large = kernel_family(request.target), request.size == "fast"
    register(Path(str(request.kernels)), family, large=large, only=("mla_attention",))


def _has_plugins(trt: Any, network: Any, expected: int) -> bool:
    """Whether all attention nodes became plugin layers; without a plugin the parser inlines the function."""
    layers = map(network.get_layer, range(network.num_layers))
    found = sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers)
    if found != expected:
        _say("error", f"{found} of {expected} attention nodes became layers of the plugin")
    return found == expected


def _decompose_wide_attention(trt: Any, network: Any) -> None:
    """Allow float32 attention, which has no fused kernel, to become matrix products.

    In any other type the build fails where there is no fused kernel, rather than becoming slow.
    """
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.type == trt.LayerType.ATTENTION_INPUT and layer.get_input(0).dtype == trt.float32:
            layer.__class__ = trt.IAttentionInputLayer  # the network returns every layer as an ILayer
            layer.attention.decomposable = True


def _quantize_softmax(trt: Any, network: Any, scale: Any, expected: int) -> bool:
    """Have the softmax of every attention on codes rounded to codes too, with a fixed `scale`.

    Without this the library multiplies what the codes stand for in the base type, and says nothing. ONNX has
    no attribute for it.
    """
    layers = [network.get_layer(place) for place in range(network.num_layers)]
    makers = {layer.get_output(0).name: layer for layer in layers if layer.num_outputs == 1}
    found = 0
    for layer in layers:
        if layer.type == trt.LayerType.ATTENTION_INPUT and _reads_codes(trt, layer, makers):
            layer.__class__ = trt.IAttentionInputLayer  # the network returns every layer as an ILayer
            layer.attention.normalization_quantize_to_type = trt.fp8
            layer.attention.normalization_quantize_scale = network.add_constant((), scale).get_output(0)
            found += 1
    if found != expected:
        _say("error", f"{found} of {expected} attentions on codes were found")
    return found == expected


def _reads_codes(trt: Any, attention: Any, makers: dict[str, Any]) -> bool:
    """Whether queries come from codes, but for the factor by which the parser scales them: here 1."""
    maker = makers.get(attention.get_input(0).name)
    while maker is not None and maker.type == trt.LayerType.ELEMENTWISE:
        maker = makers.get(maker.get_input(0).name)
    return maker is not None and maker.type == trt.LayerType.DEQUANTIZE


def _record_layers(trt: Any, logger: Any, plan: bytes, request: BuildRequest) -> bool:
    """Write the record of the engine's layers, and check that our plugin is among them."""
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return False
    told = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    Path(str(request.layers)).write_text(told)
    layers = json.loads(told)["Layers"]
    found = sum("Plugin" in str(layer.get("LayerType")) for layer in layers)
    if found != request.attention_nodes:
        _say("error", f"the engine holds {found} plugin layers, not {request.attention_nodes}")
    return found == request.attention_nodes


def _save_timing_cache(config: Any, request: BuildRequest) -> None:
    """Write the timing cache back, whole or not at all."""
    if request.timing_cache is None:
        return
    path = Path(request.timing_cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, bytes(config.get_timing_cache().serialize()))


def _logger(trt: Any) -> Any:
    """A logger that prints every warning and error as a line of JSON."""
    severities = {
        trt.Logger.Severity.WARNING: "warning",
        trt.Logger.Severity.ERROR: "error",
        trt.Logger.Severity.INTERNAL_ERROR: "error",
    }

    class Lines(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in severities:
                _say(severities[severity], message)

    return Lines()


def _say(severity: str, message: str) -> None:
    sys.stdout.write(json.dumps([severity, " ".join(message.split())]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(main(BuildRequest(**json.loads(sys.argv[1]))))
    except UserError as error:
        _say("error", str(error))
        sys.exit(1)
