"""The exported programs: the design's signature, the checkpoint's names, the model's numbers."""

import json
import subprocess
import sys

import pytest
import torch
from kit.measure import assert_close
from kit.tiny.models import draw, tiny_model
from kit.tiny.passes import pass_inputs

from export.lowering.precision import in_precision
from export.lowering.trace import trace, trace_step
from vmla.cache import CacheSpec
from vmla.config import named_config
from vmla.transformer import VideoMLA

pytestmark = pytest.mark.cpu

BATCH = 2
PRODUCT = "aten.linear"


@pytest.fixture(scope="module", params=["mla", "mha"])
def traced(request):
    """A model and its two programs."""
    model = tiny_model(layout=request.param)
    return model, trace(model, batch=BATCH)


def tensors(nodes):
    return [(node.name, tuple(node.meta["val"].shape), node.meta["val"].dtype) for node in nodes]


def user_inputs(program):
    names = program.graph_signature.user_inputs
    return tensors(node for node in program.graph.nodes if node.name in names and node.op == "placeholder")


def test_the_step_has_the_signature_of_the_design(traced):
    model, programs = traced
    c, f32, i32 = model.config, torch.float32, torch.int32
    picture = (BATCH, c.in_channels, c.chunk, c.sample_height, c.sample_width)
    per_frame = (c.sample_height // c.patch_size) * (c.sample_width // c.patch_size)
    slots = c.sink + c.history
    assert user_inputs(programs["step"]) == [
        ("latents", picture, f32),
        ("timestep", (BATCH, c.chunk), f32),
        ("text_kv", (c.num_layers, 2, BATCH, c.text_tokens, c.inner_dim), f32),
        ("cache", (c.num_layers, BATCH, slots * per_frame, c.entry_width), f32),
        ("slot_index", (slots,), i32),
        ("chunk_index", (c.chunk,), i32),
    ]
    assert tensors(programs["step"].graph.output_node().args[0]) == [
        ("velocity", picture, f32),
        ("entries", (c.num_layers, BATCH, c.chunk * per_frame, c.entry_width), f32),
    ]


def test_the_prompt_step_has_the_signature_of_the_design(traced):
    model, programs = traced
    c = model.config
    text_kv = ("text_kv", (c.num_layers, 2, BATCH, c.text_tokens, c.inner_dim), torch.float32)
    assert user_inputs(programs["prompt"]) == [("text", (BATCH, c.text_tokens, c.text_dim), torch.float32)]
    assert tensors(programs["prompt"].graph.output_node().args[0]) == [text_kv]


def test_every_weight_is_in_one_program_under_its_own_name(traced):
    model, programs = traced
    step, prompt = (set(programs[name].state_dict) for name in ("step", "prompt"))
    assert step | prompt == set(model.state_dict())
    assert not step & prompt
    assert "blocks.1.attn2.to_k.weight" in prompt


@pytest.mark.parametrize("number", [0, 1, 2, 7])
def test_the_step_equals_the_model_whatever_the_cache_holds(traced, number):
    model, programs = traced
    inputs = pass_inputs(model.config, number, batch=BATCH, seed=number)
    made = programs["step"].module()(*inputs.values())
    for got, want in zip(made, model(**inputs), strict=True):
        assert want.abs().max() > 0.1
        assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_a_step_that_takes_held_slots_alone_equals_the_model_however_many_there_are(layout, joined):
    """Whether the window fills, is full, or begins again from its sink after a `reset`."""
    model = tiny_model(layout=layout)
    spec = CacheSpec.of(model.config)
    program = trace_step(model, batch=BATCH, window="held", joined=joined)
    assert not [node for node in program.graph.nodes if "where" in str(node.target)]
    assert not [node for node in program.graph.nodes if "mla_attention" in str(node.target)]
    if layout == "mha" or not joined:  # one set of weights, the checkpoint's
        assert program.state_dict.keys() == trace_step(model, batch=BATCH).state_dict.keys()
    module = program.module()
    for frame in (*range(spec.slots + 3), 50):
        inputs = pass_inputs(model.config, 0, batch=BATCH, seed=frame, frame=frame)
        held = int((inputs["slot_index"] >= 0).sum())
        assert held == min(frame, spec.slots)
        taken = inputs | {
            "cache": inputs["cache"][:, :, : held * spec.tokens_per_frame],
            "slot_index": inputs["slot_index"][:held],
        }
        for got, want in zip(module(*taken.values()), model(**inputs), strict=True):
            assert_close(got, want, rtol=1e-4 if joined else 1e-5, atol=1e-5 if joined else 1e-6)


def test_joined_products_are_four_fewer_in_a_layer_and_keep_their_precision():
    model = tiny_model()
    apart, joined = (trace_step(model, batch=1, window="held", joined=joined) for joined in (False, True))
    products = [sum(PRODUCT in str(node.target) for node in p.graph.nodes) for p in (apart, joined)]
    # The two of the expansion are inside an operator where they are apart, and one product where joined.
    assert products[0] - products[1] == model.config.num_layers * (3 + 2 - 1 - 1 - 1)
    assert not [
        node
        for node in joined.graph.nodes
        if "expand.default" in str(node.target) and "vmla" in str(node.target)
    ]
    inputs = pass_inputs(model.config, 3)
    want = model(**inputs)
    narrow = {name: x.bfloat16() if name in ("text_kv", "cache") else x for name, x in inputs.items()}
    module = in_precision(joined, "bf16", ("text_kv", "cache", "entries"))
    stored = {name: value.dtype for name, value in module.state_dict.items() if "attn1" in name}
    made = [f"blocks.0.attn1.{name}.weight" for name in ("down", "up_q", "expansion")]
    assert {stored[name] for name in made} == {torch.bfloat16}
    for got, wanted in zip(module.module()(*narrow.values()), want, strict=True):
        assert (got.float() - wanted).norm() < 2e-2 * wanted.norm()


def test_the_prompt_step_equals_the_model(traced):
    model, programs = traced
    text = draw(BATCH, model.config.text_tokens, model.config.text_dim)
    assert_close(programs["prompt"].module()(text), model.encode_text(text), rtol=1e-6, atol=1e-6)


FULL_SIZE = """
import json
from export.lowering.precision import in_precision
from export.lowering.trace import fake_model, trace
from vmla.config import named_config
from vmla.cli.machine import peak_resident_bytes

before = peak_resident_bytes()
programs = trace(fake_model(named_config("wan-1.3b")), batch=1)
step = programs["step"]
shapes = {node.name: list(node.meta["val"].shape) for node in step.graph.nodes
          if node.name in step.graph_signature.user_inputs + step.graph_signature.user_outputs}
weights = sum(value.numel() for program in programs.values() for value in program.state_dict.values())
narrow = in_precision(step, "bf16", ("text_kv", "cache", "entries"))
size = sum(value.nbytes for value in narrow.state_dict.values())
grown = peak_resident_bytes() - before
print(json.dumps({"shapes": shapes, "weights": weights, "bf16 bytes": size, "grown": grown}))
"""


def test_the_full_model_is_traced_without_its_weights():
    done = subprocess.run([sys.executable, "-c", FULL_SIZE], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["shapes"] == {
        "latents": [1, 16, 3, 60, 104],
        "timestep": [1, 3],
        "text_kv": [30, 2, 1, 512, 1536],
        "cache": [30, 1, 7 * 1560, 224],
        "slot_index": [7],
        "chunk_index": [3],
        "velocity": [1, 16, 3, 60, 104],
        "entries": [30, 1, 3 * 1560, 224],
    }
    with torch.device("meta"):
        count = sum(weight.numel() for weight in VideoMLA(named_config("wan-1.3b")).parameters())
    assert told["weights"] == count > 1.2e9
    assert 2.2e9 < told["bf16 bytes"] < 2.5e9
    assert told["grown"] < 1e9 < 4 * count  # bytes; the weights alone would take four for each number
