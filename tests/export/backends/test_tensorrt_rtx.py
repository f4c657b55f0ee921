"""TensorRT-RTX parses and builds the ONNX graph for real, without a GPU; what it builds cannot run here."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from kit.tiny.checkpoints import first_layers

from export.backends import tensorrt_build as tensorrt
from export.checks import check_files
from export.engine.manifest import Manifest
from plugins.errors import UserError
from runtime.cli.export import main as export_main
from runtime.cli.run import main as run_main

pytestmark = pytest.mark.cpu

SCRIPT = Path(__file__).with_name("rtx_lookup.py")
TYPES = ("FLOAT", "FLOAT16", "BFLOAT16", "INT32", "INT64", "BOOL")
"""Types of tensors that TensorRT's parser takes outside quantised weights."""


@pytest.fixture(scope="module")
def engine(build_engine):
    """The debug model in bfloat16 for GPUs of the Ada and the Blackwell generation."""
    return build_engine("--backend", "tensorrt-rtx", "--target", "sm89,sm120", "--precision", "bf16")


def test_the_engine_is_built_for_its_targets(engine):
    manifest = Manifest.read(engine)
    assert (manifest.host.device, manifest.host.architecture) == ("cuda", "sm_89,sm_120")
    assert sorted(manifest.files) == ["prompt.engine", "step.engine"]
    check_files(manifest, engine)
    assert (engine / "step.engine").stat().st_size > 100_000
    assert "tensorrt_rtx" in manifest.host.versions


def request(graph, engine, target, **more):
    return tensorrt.BuildRequest(
        library="tensorrt_rtx", graph=str(graph), engine=str(engine), target=target, **more
    )


def test_the_graph_with_nodes_builds_from_their_function(plugin_graph, tmp_path):
    warned = tensorrt.build(request(plugin_graph, tmp_path / "step.engine", "sm_120"))
    assert (tmp_path / "step.engine").stat().st_size > 100_000
    # The function is written in once for each node, under the same names; nobody asks for those tensors.
    assert all("already exists, the output tensors of this new instance" in warning for warning in warned)


def test_single_precision_with_attention_written_out_builds_without_a_warning(native_graph, tmp_path):
    warned = tensorrt.build(request(native_graph, tmp_path / "step.engine", "sm_120"))
    assert (tmp_path / "step.engine").stat().st_size > 100_000
    assert warned == []


@pytest.mark.parametrize(
    ("precision", "layers"), [pytest.param("fp32", 6, marks=pytest.mark.slow), ("bf16", 3), ("fp8", 3)]
)
def test_the_shipped_model_builds_without_a_warning(tmp_path, precision, layers):
    model = str(first_layers(tmp_path / "model", layers))
    command = ["build", "--checkpoint", model, "--target", "sm_89", "--precision", precision]
    if precision == "fp8":  # on as little as gives scales at all
        scales = [
            "--checkpoint",
            model,
            "--prompts",
            "1",
            "--chunks",
            "1",
            "-o",
            str(tmp_path / "scales.json"),
        ]
        assert CliRunner().invoke(export_main, ["calibrate", *scales]).exit_code == 0
        command += ["--calibration", str(tmp_path / "scales.json")]
    result = CliRunner().invoke(export_main, [*command, "-o", str(tmp_path / "engine")])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("backend: tensorrt-rtx (which builds for a named GPU)")
    assert "warning" not in result.output
    check_files(Manifest.read(tmp_path / "engine"), tmp_path / "engine")


def test_nodes_without_their_plugin_are_refused_where_the_plugin_is_wanted(plugin_graph, tmp_path):
    wanted = request(plugin_graph, tmp_path / "step.engine", "sm_89", attention_nodes=2)
    with pytest.raises(UserError, match="0 of 2 attention nodes became layers of the plugin"):
        tensorrt.build(wanted)
    assert not (tmp_path / "step.engine").exists()


@pytest.mark.parametrize("registered", ["mla_attention", "mla_attention_fp8"])
def test_the_parser_finds_a_plugin_of_the_node_s_name_and_no_other(plugin_graph, registered):
    command = [sys.executable, str(SCRIPT), str(plugin_graph), registered]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    asked = [value for kind, value in told if kind == "asked"]
    messages = [value for _, value in told if isinstance(value, str)]
    looked = "treated as plugin: mla_attention, plugin_version: 1, plugin_namespace: vmla"
    assert ["registered", True] in told
    assert any(looked in message for message in messages)
    if registered == "mla_attention":
        assert asked == [["mla_attention", []]]  # the plugin has no attributes that the node would lack
        assert any("Found registered plugin: mla_attention" in message for message in messages)
        assert ["parsed", False] in told  # there was no plugin to give
    else:
        assert not asked
        assert ["parsed", True] in told


def test_the_parser_knows_every_operation_and_type(onnx_engine, plugin_graph):
    """TensorRT's parser, in the only form in which it runs without a GPU."""
    import tensorrt_rtx as trt

    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    parser = trt.OnnxParser(builder.create_network(), trt.Logger(trt.Logger.ERROR))
    for path in (onnx_engine / "step.onnx", onnx_engine / "prompt.onnx", plugin_graph):
        model = onnx.load(path)
        nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
        kinds = {node.op_type for node in nodes if node.domain == ""}
        assert {kind for kind in kinds if not parser.supports_operator(kind)} == set()
        values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
        types = {value.type.tensor_type.elem_type for value in values}
        types |= {weight.data_type for weight in model.graph.initializer}
        assert types <= {getattr(onnx.TensorProto, kind) for kind in TYPES}


def test_what_the_parser_refuses_is_said_in_one_line(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no graph at all")
    with pytest.raises(UserError, match="TensorRT-RTX cannot build bad.onnx for sm_89: ") as refusal:
        tensorrt.build(request(tmp_path / "bad.onnx", tmp_path / "bad.engine", "sm_89"))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "bad.engine").exists()


def test_it_does_not_run_on_this_machine(engine):
    result = CliRunner().invoke(
        run_main, ["--prompt", "a red star", "--engine", str(engine), "--chunks", "1", "-o", "null"]
    )
    assert result.exit_code == 2
    listed = CliRunner().invoke(export_main, ["list", str(engine.parent)]).output
    assert "does not run here" in listed
