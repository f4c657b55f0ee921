"""ONNX graphs: their names, what they are made of, and weights beside them."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from kit.measure import assert_close
from kit.tiny.models import tiny_model
from kit.tiny.passes import pass_inputs
from onnx.reference import ReferenceEvaluator

from bench.speed.onnx_graph import faults
from export.build import lower
from export.engine.manifest import Manifest
from export.engine.signature import contract
from export.lowering.trace import trace, trace_step
from export.onnx import attention_node as onnx_attention
from export.onnx import graph as graphs
from export.onnx.decompositions import decomposed
from export.settings import Settings
from plugins.aot.tensorrt_plugin import NAMESPACE, PLUGIN_SPECS
from plugins.errors import UserError
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

SEQUENCES = {"SplitToSequence", "SequenceAt", "SequenceEmpty", "ConcatFromSequence"}
"""What TensorRT does not know."""


@pytest.fixture(scope="module")
def model(plugin_graph):
    """The step of the debug model, with nodes for the plugin."""
    return onnx.load(plugin_graph)


@pytest.fixture(scope="module")
def held(onnx_engine):
    """The graph of an engine's step, which takes the slots that hold a frame."""
    return onnx.load(onnx_engine / "step.onnx").graph


@pytest.fixture
def graph(model):
    """Its graph."""
    return model.graph


def inputs_of(checkpoint, number):
    config = open_checkpoint(checkpoint).model_config()
    return {name: x.numpy() for name, x in pass_inputs(config, number, seed=number).items()}


def test_the_graph_has_the_signature_of_the_manifest_but_for_how_many_slots_hold_a_frame(held, onnx_engine):
    step, open_ended = Manifest.read(onnx_engine).programs["step"], {("cache", 2), ("slot_index", 0)}
    for values, specs in ((held.input, step.inputs), (held.output, step.outputs)):
        for value, spec in zip(values, specs, strict=True):
            kind = value.type.tensor_type
            assert (value.name, kind.elem_type) == (spec.name, np_type(spec.dtype))
            for axis, (dim, size) in enumerate(zip(kind.shape.dim, spec.shape, strict=True)):
                assert (dim.dim_value or None) == (None if (spec.name, axis) in open_ended else size)


def np_type(name):
    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name))


def test_no_mask_is_made_and_none_is_read(held, native_graph):
    """Validity costs a full window nothing: no comparison, no choice, no row of a mask for any query."""
    for graph, masked in ((held, False), (onnx.load(native_graph).graph, True)):
        kinds = {node.op_type for node in graph.node}
        attention = [node for node in graph.node if node.op_type == "Attention"]
        masks = [node for node in attention if len(node.input) > 3 and node.input[3]]
        assert (len(attention), len(masks)) == (4, 2 if masked else 0)
        assert ({"Where", "GreaterOrEqual"} & kinds == set()) is not masked


def test_sizes_are_worked_out_of_one_input_alone(held):
    assert not {node.op_type for node in held.node} & SEQUENCES
    [asked] = [node for node in held.node if node.op_type == "Shape"]
    assert list(asked.input) == ["slot_index"]


def test_weights_keep_their_names(graph, checkpoint):
    weights = open_checkpoint(checkpoint).transformer().state_dict()
    named = {tensor.name: tensor for tensor in graph.initializer if tensor.name in weights}
    assert "blocks.1.ffn.up.weight" in named
    assert {name for name in weights if ".attn2.to_k" not in name and ".attn1." in name} <= named.keys()
    for name, tensor in named.items():
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), weights[name].numpy()), name


def test_it_is_made_of_operations_that_tensorrt_knows(graph):
    kinds = {node.op_type for node in graph.node}
    assert not kinds & SEQUENCES
    assert "Shape" not in kinds
    assert str(Path(__file__).parents[2]) not in str(graph)  # the exporter notes where each node comes from


def test_attention_is_a_node_that_fits_the_plugin(graph):
    ours = [node for node in graph.node if node.domain == NAMESPACE]
    assert {node.domain for node in graph.node} == {"", NAMESPACE}
    assert [node.op_type for node in graph.node].count("Attention") == 2  # to the text, of two layers
    [spec] = [spec for spec in PLUGIN_SPECS if spec.name == "mla_attention"]
    assert len(ours) == 2
    for node in ours:
        assert node.op_type == spec.name
        assert len(node.input) == len(spec.inputs)
        found = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        assert found == {"plugin_namespace": b"vmla", "plugin_version": b"1", "aot": 1} | spec.attributes


def test_the_function_beside_it_is_what_a_native_graph_holds(model, native_graph):
    [function] = model.functions
    assert (function.domain, function.name) == (NAMESPACE, "mla_attention")
    assert [opset.version for opset in function.opset_import] == [graphs.OPSET]
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": graphs.OPSET, NAMESPACE: 1}
    written_out = onnx.load(native_graph)
    assert not written_out.functions
    kinds = [node.op_type for node in written_out.graph.node]
    assert kinds.count("Attention") == 4
    assert kinds.count("Where") == 2 * sum(node.op_type == "Where" for node in function.node) + 2  # entries


@pytest.mark.parametrize("number", [0, 2])
def test_it_runs_node_for_node_in_the_reference_evaluator(model, checkpoint, number):
    inputs = inputs_of(checkpoint, number)
    want = open_checkpoint(checkpoint).transformer()(**{k: torch.from_numpy(x) for k, x in inputs.items()})
    for got, wanted in zip(ReferenceEvaluator(model).run(None, inputs), want, strict=True):
        assert wanted.abs().max() > 0.1
        assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-4)


def test_node_and_native_graph_give_the_same(plugin_graph, native_graph, checkpoint):
    inputs = inputs_of(checkpoint, 2)
    results = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs)
        for path in (plugin_graph, native_graph)
    ]
    for got, want in zip(*results, strict=True):
        assert_close(torch.from_numpy(got), torch.from_numpy(want), rtol=1e-5, atol=1e-5)


def test_one_function_serves_calls_of_one_shape_only():
    program = trace_step(tiny_model(), batch=1)
    last = [node for node in program.graph.nodes if node.target is onnx_attention.OPERATOR][-1]
    last.args[0].meta["val"] = last.args[0].meta["val"][:, :, 1:]
    with pytest.raises(ValueError, match="too many values"):
        onnx_attention.example(program)


@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_plain_operations_compute_the_same(layout):
    model = tiny_model(layout=layout)
    program = decomposed(trace(model, batch=1)["step"])
    assert not [node for node in program.graph.nodes if "aten.split" in str(node.target)]  # sequences in ONNX
    inputs = pass_inputs(model.config, 1, seed=3)
    for got, want in zip(program.module()(*inputs.values()), model(**inputs), strict=True):
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_narrow_graphs_pass_the_checker(tmp_path, precision):
    settings = Settings(backend="onnx", precision=precision)
    model = tiny_model()
    narrow = {"bf16": "bfloat16", "fp16": "float16"}[precision]
    signature = contract(model.config, batch=1, narrow=narrow)["step"]
    program = lower(trace(model, batch=1)["step"], signature, settings)
    graphs.save(program, signature, tmp_path / "step.onnx")
    made = onnx.load(tmp_path / "step.onnx").graph
    code = {"bf16": onnx.TensorProto.BFLOAT16, "fp16": onnx.TensorProto.FLOAT16}[precision]
    stored = {tensor.name: tensor.data_type for tensor in made.initializer}
    assert stored["blocks.0.attn1.up_k.weight"] == code
    assert stored["blocks.0.attn1.norm_kv.weight"] == onnx.TensorProto.FLOAT


def test_large_weights_lie_beside_the_graph(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "LARGEST", 1000)
    model = tiny_model()
    signature = contract(model.config, batch=1)["step"]
    graphs.save(trace(model, batch=1)["step"], signature, tmp_path / "step.onnx")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"step.onnx", "step.onnx.data"}
    matrices = sum(weight.nbytes for weight in model.blocks.parameters() if weight.nbytes > 2000)
    assert (tmp_path / "step.onnx.data").stat().st_size > 0.6 * matrices
    whole = onnx.load(tmp_path / "step.onnx")
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in whole.graph.initializer}
    assert np.array_equal(weights["blocks.0.ffn.up.weight"], model.blocks[0].ffn.up.weight.numpy())


def test_a_graph_that_the_checker_refuses_is_no_engine(tmp_path, monkeypatch):
    def refuse(path, full_check):
        raise onnx.checker.ValidationError("no such operator\nand more")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    model = tiny_model()
    signature = contract(model.config, batch=1)["prompt"]
    with pytest.raises(UserError, match=r"^the ONNX checker refuses prompt.onnx: no such operator$"):
        graphs.save(trace(model, batch=1)["prompt"], signature, tmp_path / "prompt.onnx")


@pytest.mark.parametrize("name", ["step", "prompt"])
@pytest.mark.parametrize("folder", ["onnx_engine", "fp8_engine"])
def test_polygraphy_finds_no_fault_in_an_engine(folder, name, request):
    folder = request.getfixturevalue(folder)
    assert_sound(faults(folder / f"{name}.onnx", Manifest.read(folder).programs[name]))


@pytest.mark.parametrize("form", ["native_graph", "plugin_graph"])
def test_polygraphy_finds_no_fault_in_a_graph_of_all_slots(form, checkpoint, request):
    step = contract(open_checkpoint(checkpoint).model_config(), batch=1)["step"]
    assert_sound(faults(request.getfixturevalue(form), step))


def assert_sound(found):
    assert found["passing"] > 30
    assert found["entries"] == []
    assert found["failing"] == []
