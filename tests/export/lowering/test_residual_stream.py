"""Which engines have a narrow residual stream between blocks, and what it costs the shipped model."""

import onnx
import pytest
import torch
from kit.tiny.models import tiny_model
from kit.tiny.passes import pass_inputs

from export.build import lower
from export.engine.signature import NARROW, contract
from export.lowering.precision import in_precision
from export.lowering.trace import trace_step
from export.onnx import graph as graphs
from export.settings import Settings
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

HELD = ("text_kv", "cache", "entries")
NARROW_BETWEEN = [
    {"backend": "aoti", "precision": "bf16", "device": "cuda"},
    {"backend": "aoti", "precision": "fp8", "device": "cuda"},
    {"backend": "tensorrt", "precision": "bf16"},
    {"backend": "tensorrt", "precision": "fp8"},
    {"backend": "tensorrt", "precision": "nvfp4"},
    {"backend": "tensorrt-rtx", "precision": "bf16", "target": "sm_120"},
    {"backend": "torch-tensorrt", "precision": "bf16"},
]
ON_A_GPU = [
    {"backend": "aoti", "precision": "fp32", "device": "cuda"},
    {"backend": "aoti", "precision": "fp16", "device": "cuda"},
    {"backend": "tensorrt", "precision": "fp16"},
]
ON_A_CPU = [
    {"backend": "aoti", "precision": "fp32"},
    {"backend": "aoti", "precision": "bf16"},
    {"backend": "aoti", "precision": "fp8"},
    {"backend": "onnx", "precision": "fp32"},
    {"backend": "onnx", "precision": "bf16"},
    {"backend": "onnx", "precision": "fp8"},
]


def spelled(options):
    return "-".join(options.values())


def signature_of(model, settings):
    return contract(model.config, batch=1, narrow=NARROW[settings.base])["step"]


@pytest.mark.parametrize("options", NARROW_BETWEEN, ids=spelled)
def test_engines_in_bfloat16_for_a_gpu_have_it(options):
    assert Settings(**options).between_blocks


@pytest.mark.parametrize("options", ON_A_GPU + ON_A_CPU, ids=spelled)
def test_graphs_of_all_other_engines_are_as_without_it(options):
    settings, model = Settings(**options), tiny_model()
    signature = signature_of(model, settings)
    made = lower(trace_step(model, batch=1), signature, settings)
    held = HELD if settings.base in ("bf16", "fp16") else ()
    assert str(made.graph) == str(in_precision(trace_step(model, batch=1), settings.base, held).graph)


def test_an_onnx_graph_for_tensorrt_keeps_it(tmp_path):
    settings, model = Settings(backend="tensorrt", precision="bf16"), tiny_model()
    signature = signature_of(model, settings)
    program = lower(trace_step(model, batch=1, window="held", joined=True), signature, settings)
    graphs.save(program, signature, tmp_path / "step.onnx", attention_nodes=False)
    nodes = onnx.load(tmp_path / "step.onnx").graph.node
    readers = {name: [node for node in nodes if name in node.input] for node in nodes for name in node.output}
    narrow = [
        node for node in nodes if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.BFLOAT16
    ]
    stream = [node for node in narrow if {user.op_type for user in readers[node.output[0]]} == {"Cast"}]
    assert len(stream) == model.config.num_layers + 1


@pytest.fixture(scope="module")
def shipped():
    """The shipped model, and its step in bfloat16 by whether the stream is narrow between blocks."""
    model = open_checkpoint().transformer()
    forms = {}
    for between in (False, True):
        program = trace_step(model, batch=1, joined=True)
        forms[between] = in_precision(program, "bf16", HELD, between_blocks=between).module()
    return model, forms


def error(got, want):
    return float((got.float() - want).norm() / want.norm())


def test_it_costs_the_shipped_model_less_than_the_eager_model_in_bfloat16_loses(shipped):
    """Root mean squares over passes; in a rollout the velocity's are 0.0063, 0.0080 and 0.0141."""
    model, forms = shipped
    eager, squares = open_checkpoint().transformer().bfloat16(), torch.zeros(3, 2)
    eager.rope.float()
    for seed in range(6):
        inputs = pass_inputs(model.config, 2 + seed, seed=seed)
        want = model(**inputs)
        narrow = {name: x.bfloat16() if name in HELD else x for name, x in inputs.items()}
        latents = narrow["latents"].bfloat16()
        made = (
            forms[False](*narrow.values()),
            forms[True](*narrow.values()),
            eager(**narrow | {"latents": latents}),
        )
        for row, results in zip(squares, made, strict=True):
            row += torch.tensor([error(*pair) ** 2 for pair in zip(results, want, strict=True)])
    wide, between, all_narrow = (squares / 6).sqrt()
    assert (wide < between).all()
    assert (between < all_narrow).all()
    assert between[0] < 1.5 * wide[0]
    assert between[1] < 1.2 * wide[1]
