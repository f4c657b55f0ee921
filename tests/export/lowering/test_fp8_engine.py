"""fp8 engines: the graph in ONNX Runtime equals the PyTorch program; what TensorRT-RTX builds of it."""

import onnx
import pytest
import torch
from click.testing import CliRunner
from kit.measure import assert_close
from kit.tiny.checkpoints import debug_checkpoint
from kit.tiny.passes import pass_inputs

from export.backends.aoti import AOTI
from export.build import describe, lower
from export.engine.manifest import Manifest
from export.lowering.calibration import Calibration
from export.lowering.trace import trace_step
from export.onnx import graph as graphs
from export.settings import Settings
from plugins.errors import UserError
from runtime.cli.export import main
from runtime.engines.compiled import open_engine
from vmla.transformer import StepInputs
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

E4M3, E2M1 = onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT4E2M1
DYNAMIC = "TRT_FP4DynamicQuantize"


@pytest.fixture(scope="module")
def folder(fp8_engine):
    """An engine for ONNX Runtime."""
    return fp8_engine


@pytest.fixture(scope="module")
def program(checkpoint, calibration_file):
    """Make the step of the debug model for other settings."""

    def make(**settings):
        asked, opened = Settings(**settings), open_checkpoint(checkpoint)
        wanted = describe(opened, asked)
        layers = wanted.layers[asked.precision]
        largest = Calibration.read(calibration_file).of_layers(layers, wanted.model_hash)
        signature = wanted.programs["step"]
        return lower(trace_step(opened.transformer(), batch=1), signature, asked, largest), signature

    return make


def test_onnx_runtime_equals_the_program_in_pytorch(folder, checkpoint, program):
    made, _ = program(backend="onnx", precision="fp8")
    opened = open_checkpoint(checkpoint)
    with open_engine(folder, opened) as engine:
        for number in (0, 2, 7):
            inputs = pass_inputs(engine.config, number, seed=number)
            # The same codes, but for a number between two of them that the other's last bit sends the other
            # way: that shows in the third decimal place of one token.
            wanted = made.module()(*inputs.values())
            for got, want in zip(engine.step(StepInputs(**inputs)), wanted, strict=True):
                assert ((got - want).abs() < 1e-5 + 1e-5 * want.abs()).float().mean() > 0.95
                assert_close(got, want, rtol=0, atol=0.02)


def test_quantising_stands_where_tensorrt_fuses_it(folder):
    """Input: QuantizeLinear, DequantizeLinear. Weight: codes [out, in], DequantizeLinear, Transpose."""
    graph = onnx.load(folder / "step.onnx").graph
    makers = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == E4M3}
    layers = Manifest.read(folder).layers["fp8"]
    assert {f"{name}.weight" for name in layers} == {name for name in weights if name.endswith(".weight")}
    products = 0
    for node in graph.node:
        if node.op_type != "MatMul" or makers[node.input[1]].op_type != "Transpose":
            continue
        rows = makers.get(makers[node.input[1]].input[0])
        if rows is None or rows.op_type != "DequantizeLinear":
            continue
        values = makers[node.input[0]]
        assert (values.op_type, makers[values.input[0]].op_type) == ("DequantizeLinear", "QuantizeLinear")
        assert rows.input[0] in weights
        assert [a.i for a in rows.attribute if a.name == "axis"] == [0]
        products += 1
    assert products == len(layers) == 14


OLD = torch.__version__ < "2.13"
"""Whether this PyTorch is refused for layers in fp8 on a CPU."""


def test_a_pytorch_without_float8_inputs_is_refused_by_layer(monkeypatch):
    by_layer = Settings(backend="aoti", precision="fp8", regional=True)
    monkeypatch.setattr(torch, "__version__", "2.12.1+cpu")
    with pytest.raises(UserError, match="takes PyTorch 2.13 or later; leave --regional out"):
        by_layer.check_tools()
    Settings(backend="aoti", precision="fp8").check_tools()
    monkeypatch.setattr(torch, "__version__", "2.13.0a0+gitabc")
    by_layer.check_tools()


@pytest.mark.skipif(OLD, reason="refused, as the test before this one shows")
def test_compiled_by_layer_it_is_the_whole_program(tmp_path):
    """By AOTInductor for this CPU, from four layers, so that there are some at the ends that stay plain."""
    folder, opened = tmp_path / "engine", open_checkpoint(debug_checkpoint(tmp_path / "four", num_layers=4))
    model, watched = ["--checkpoint", str(opened.folder)], str(tmp_path / "calibration.json")
    options = ["--backend", "aoti", "--precision", "fp8", "--regional", "--calibration", watched]
    for words in (
        ["calibrate", *model, "--prompts", "1", "--chunks", "3", "-o", watched],
        ["build", *model, *options, "-o", str(folder)],
    ):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
    manifest = Manifest.read(folder)
    parts = ["step-begin.pt2", "step-layer.pt2", "step-plain.pt2", "step-end.pt2", "step-weights.safetensors"]
    assert list(AOTI().files("step", manifest)) == parts
    layers = manifest.layers["fp8"]
    assert {name.split(".")[1] for name in layers} == {"1", "2"}
    largest = Calibration.read(folder / "calibration.json").of_layers(layers, manifest.model_hash)
    made = trace_step(opened.transformer(), batch=1, joined=True, apart=layers)
    settings = Settings(backend="aoti", precision="fp8", regional=True)
    whole = lower(made, manifest.programs["step"], settings, largest).module()
    exact = opened.transformer()
    with open_engine(folder, opened) as engine:
        for number in (0, 7):
            inputs = pass_inputs(engine.config, number, seed=number)
            made = engine.step(StepInputs(**inputs)), whole(*inputs.values()), exact(**inputs)
            for got, want, without in zip(*made, strict=True):
                # Another order of sums sends numbers between two codes the other way, in few places.
                assert (got - want).norm() < 0.25 * (want - without).norm()


def test_it_says_what_it_is(folder, calibration_file):
    manifest = Manifest.read(folder)
    assert (folder / "calibration.json").read_text() == calibration_file.read_text()
    assert manifest.files["calibration.json"] == Calibration.read(calibration_file).digest
    shown = CliRunner().invoke(main, ["inspect", str(folder)]).output.splitlines()
    assert "  fp8: 14" in shown
    assert "    2 ffn.down" in shown
    assert "    1 proj_out: makes the velocity itself, at a thousandth of the cost" in shown
    assert any(line.startswith("products of codes: left to what runs the graph; ONNX") for line in shown)
    assert "calibrated on 2 prompts, 3 chunks, seed 0" in shown


def test_verify_knows_its_bounds(folder):
    result = CliRunner().invoke(main, ["verify", str(folder), "--chunks", "2"])
    assert result.exit_code == 0, result.output
    assert "bounds in fp8: " in result.output
    assert "they hold" in result.output


@pytest.mark.parametrize(("precision", "target"), [("fp8", "sm_89"), ("nvfp4", "sm_120")])
def test_graphs_for_gpus_hold_codes_and_bfloat16(program, tmp_path, precision, target):
    made, signature = program(backend="tensorrt-rtx", precision=precision, target=target)
    path = tmp_path / "step.onnx"
    graphs.save(made, signature, path)
    graph = onnx.load(path).graph
    codes = [t for t in graph.initializer if t.data_type == (E4M3 if precision == "fp8" else E2M1)]
    assert len([tensor for tensor in codes if tensor.name.endswith(".weight")]) == 14
    if precision == "fp8":
        known = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
        made_wide = [node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"]
        assert {known[name] for name in made_wide} == {onnx.TensorProto.BFLOAT16}
    else:  # made as it runs, by a node that nobody else knows
        assert [node.op_type for node in graph.node if node.domain == "trt"] == [DYNAMIC] * 14


@pytest.mark.parametrize(("precision", "target"), [("fp8", "sm_89"), ("nvfp4", "sm_120")])
def test_tensorrt_rtx_builds_it_without_a_word(checkpoint, calibration_file, tmp_path, precision, target):
    options = ["--backend", "tensorrt-rtx", "--target", target, "--precision", precision]
    files = ["--checkpoint", checkpoint, "--calibration", calibration_file, "-o", tmp_path / "engine"]
    result = CliRunner().invoke(main, ["build", *options, *map(str, files)])
    assert result.exit_code == 0, result.output
    assert "warning" not in result.output
    manifest = Manifest.read(tmp_path / "engine")
    assert sorted(manifest.files) == ["calibration.json", "prompt.engine", "step.engine"]
    assert (manifest.precision, manifest.quantization.base) == (precision, "bf16")
    assert (tmp_path / "engine" / "step.engine").stat().st_size > 100_000
