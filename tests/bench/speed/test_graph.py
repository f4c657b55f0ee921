"""The published model's graph, without its weights: its inputs, its attention nodes, its size in memory."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tensorrt_rtx as trt
import torch

from bench.speed.onnx_graph import Graph, export_graph, holes, random_weights
from vmla.config import named_config

pytestmark = pytest.mark.cpu

NAMES = ["latents", "timestep", "text_kv", "cache", "slot_index", "chunk_index"]
TYPES = {"FLOAT", "BFLOAT16", "INT32", "INT64"}
COMMAND = [sys.executable, "-c", "from bench.cli import main; main()", "graph"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Two layers of the published width, in bfloat16, at the published sizes."""
    path = tmp_path_factory.mktemp("graph") / "step.onnx"
    config = replace(named_config("wan-1.3b"), num_layers=2)
    return path, export_graph(config, "bf16", path, weights=holes(config))


def assert_published(graph, layers):
    assert list(graph.inputs) == NAMES
    (slots,) = graph.inputs["slot_index"]
    assert isinstance(slots, str)  # which is how many hold a frame
    assert graph.inputs["cache"] == [layers, 1, f"1560*{slots}", 224]
    assert graph.inputs["text_kv"] == [layers, 2, 1, 512, 1536]
    assert graph.outputs == {"velocity": [1, 16, 3, 60, 104], "entries": [layers, 1, 3 * 1560, 224]}
    assert (graph.attention_nodes, graph.masks) == (0, [])
    assert graph.operations["Attention"] == 2 * layers  # to the window, and to the text
    assert set(graph.types) <= TYPES


def test_two_layers_of_the_published_width(wide):
    path, graph = wide
    assert_published(graph, 2)
    data = path.with_name("step.onnx.data")
    assert data.stat().st_size > 2 * graph.weights - 1e6
    assert data.stat().st_blocks * 512 < 1e6  # holes


def test_tensorrt_s_parser_takes_it(wide):
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(wide[0]))
    assert [network.get_input(place).name for place in range(network.num_inputs)] == NAMES


def test_random_weights_are_those_of_the_model_and_no_others(tmp_path):
    config = named_config("debug")
    path = tmp_path / "step.onnx"
    export_graph(config, "bf16", path, weights=random_weights(config))
    assert np.fromfile(path.with_name("step.onnx.data"), np.uint8).astype(bool).sum() > 10_000
    graph = Graph.read(path)
    assert (graph.attention_nodes, graph.masks) == (0, [])
    with pytest.raises(ValueError, match="is not a weight of the model"):
        random_weights(config)("abacus", torch.empty(1))


def test_the_form_for_the_plugin_has_a_node_a_layer_that_takes_validity(tmp_path):
    config, path = named_config("debug"), tmp_path / "step.onnx"
    graph = export_graph(config, "bf16", path, weights=holes(config), attention="plugin")
    assert graph.attention_nodes == config.num_layers
    assert graph.inputs["slot_index"] == [config.sink + config.history]
    assert sum("mla_attention" in mask for mask in graph.masks) == config.num_layers
    assert any("Greater" in mask for mask in graph.masks)  # slots that hold a frame: 0 and more


def test_an_fp8_graph_holds_codes_and_scales_of_random_weights(tmp_path):
    config, path = replace(named_config("debug"), num_layers=3), tmp_path / "step.onnx"
    graph = export_graph(config, "fp8", path, weights=random_weights(config))
    assert graph.operations["QuantizeLinear"] > 3
    assert "FLOAT8E4M3FN" in graph.types
    source = random_weights(config)
    name = "blocks.1.ffn.up.weight"
    width = config.inner_dim
    scale = source(f"{name}_scale", torch.empty(4))
    codes = source(name, torch.empty(512, width, dtype=torch.float8_e4m3fn))
    values = codes.float() * scale[0]
    assert values.std() == pytest.approx(width**-0.5, rel=0.05)
    assert (codes.float().abs() == 448).float().mean() < 1e-3


@pytest.mark.slow
def test_the_whole_published_model():
    done = subprocess.run([*COMMAND, "--shape", "wan-1.3b"], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])["graph"]
    assert_published(Graph(**{name: told[name] for name in Graph.__dataclass_fields__}), 30)
    assert told["weights"] > 1.1e9
    assert told["peak_bytes"] < 1e9 < told["weight_bytes"] / 2


def test_a_gpu_that_rtx_does_not_build_for_is_refused():
    done = subprocess.run([*COMMAND, "--target", "sm_90"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "builds no engines for sm_90" in done.stderr
