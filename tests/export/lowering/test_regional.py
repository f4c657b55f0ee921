"""Programs in parts: chained they are the model, in every window, and no layer adds a program or a node."""

from dataclasses import replace

import pytest
import torch
from kit.measure import assert_close
from kit.models import draw, tiny_model
from kit.passes import pass_inputs
from torch._subclasses.fake_tensor import FakeTensor

from export.engine.signature import PARTS
from export.loading.regional import RUN, read_layers
from export.lowering.regional import trace_regional
from export.lowering.trace import fake_model
from vmla.cache import CacheSpec
from vmla.config import named_config
from vmla.weights.formats.files import write_tensors

pytestmark = pytest.mark.cpu

BATCH = 2


def traced(model, window="held", precision="fp32"):
    return trace_regional(model, batch=BATCH, window=window, joined=True, precision=precision)


def runs(model, folder, **settings):
    """Both programs in parts, run by PyTorch, their weights read from files."""
    made = {}
    for name, program in traced(model, **settings).items():
        path = folder / f"{name}.safetensors"
        write_tensors(path, program.weights, {})
        parts = {part: several(one.module(check_guards=False)) for part, one in program.parts.items()}
        made[name] = RUN[name](parts, read_layers(path, "cpu"))
    return made


def several(module):
    module._forward_pre_hooks.clear()  # PyTorch's check does not take 0 tokens for a number of slots times 16

    def run(*tensors):
        made = module(*tensors)
        return (made,) if isinstance(made, torch.Tensor) else made

    return run


@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_the_parts_are_the_model_however_many_slots_hold_a_frame(layout, tmp_path):
    model = tiny_model(layout=layout)
    step, spec = runs(model, tmp_path)["step"], CacheSpec.of(model.config)
    for frame in (*range(spec.slots + 2), 50):
        inputs = pass_inputs(model.config, 0, batch=BATCH, seed=frame, frame=frame)
        held = min(frame, spec.slots)
        taken = inputs | {
            "cache": inputs["cache"][:, :, : held * spec.tokens_per_frame],
            "slot_index": inputs["slot_index"][:held],
        }
        for got, want in zip(step(*taken.values()), model(**inputs), strict=True):
            assert want.abs().max() > 0.1
            assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_step_over_all_slots_is_told_which_hold_a_frame(tmp_path):
    model = tiny_model()
    step = runs(model, tmp_path, window="all")["step"]
    for number in (0, 1, 9):
        inputs = pass_inputs(model.config, number, batch=BATCH, seed=number)
        for got, want in zip(step(*inputs.values()), model(**inputs), strict=True):
            assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_prompts_are_encoded_as_by_the_model(tmp_path):
    model = tiny_model()
    text = draw(BATCH, model.config.text_tokens, model.config.text_dim)
    (made,) = runs(model, tmp_path)["prompt"](text)
    assert_close(made, model.encode_text(text), rtol=1e-5, atol=1e-6)


def test_a_narrow_precision_is_that_of_the_weights_and_of_the_cache(tmp_path):
    model = tiny_model()
    step, inputs = runs(model, tmp_path, precision="bf16")["step"], pass_inputs(model.config, 9, batch=BATCH)
    narrow = {name: x.bfloat16() if name in ("text_kv", "cache") else x for name, x in inputs.items()}
    velocity, entries = step(*narrow.values())
    assert (velocity.dtype, entries.dtype) == (torch.float32, torch.bfloat16)
    for got, want in zip((velocity, entries), model(**inputs), strict=True):
        assert (got.float() - want).norm() < 2e-2 * want.norm()
    weights = traced(model, precision="bf16")["step"].weights
    assert weights["1.attn1.down"].dtype is torch.bfloat16
    assert weights["1.norm2.weight"].dtype is torch.float32


def test_layers_add_weights_and_nothing_else():
    few, many = (traced(fake_model(replace(named_config("debug"), num_layers=layers))) for layers in (2, 5))
    for name, parts in PARTS.items():
        assert few[name].parts.keys() == many[name].parts.keys() == set(parts)
        for part in parts:
            nodes = [len(made[name].parts[part].graph.nodes) for made in (few, many)]
            assert nodes[0] == nodes[1]
        assert 2 * len(many[name].weights) == 5 * len(few[name].weights)


def test_the_full_model_is_traced_without_its_weights():
    model = fake_model(named_config("wan-1.3b"))
    made = trace_regional(model, batch=1, window="held", joined=True, precision="bf16")
    held = [tensor for program in made.values() for tensor in program.weights.values()]
    assert all(isinstance(tensor, FakeTensor) for tensor in held)
    assert 2.2e9 < sum(tensor.nbytes for tensor in held) < 2.7e9
    assert all(not one.state_dict for program in made.values() for one in [program.parts["layer"]])
    assert made["step"].weights["29.ffn.up.weight"].shape == (8960, 1536)
    assert made["prompt"].weights["29.to_k.weight"].shape == (1536, 1536)
