"""How an engine on a CPU lays out a model: products joined and packed, equal to the model in any window."""

import pytest
import torch
from kit.measure import assert_close, assert_relative
from kit.tiny.engines import Words
from kit.tiny.models import tiny_model
from kit.tiny.passes import pass_inputs
from torch import nn

from runtime.engines.base import EagerEngine
from runtime.engines.layers.packed_linear import PackedLinear, packed
from runtime.engines.optimizations import Optimizations, Place, optimized
from runtime.planning.peak_memory import peak_live_bytes
from vmla.attention import LatentAttention
from vmla.fused_attention import FusedLatentAttention, JoinedProduct, fused
from vmla.transformer import StepInputs

pytestmark = pytest.mark.cpu

CPU = torch.device("cpu")
CHUNKS = 5
"""Chunks of the tiny models: the first has an empty window, the last ones a full one."""


def engine(model, dtype=torch.float32, **settings):
    return EagerEngine(model, Words(model.config), device=CPU, dtype=dtype, **settings)


def attentions(made):
    return {type(block.attn1) for block in made._model.blocks}


@pytest.mark.parametrize("layout", ["mla", "mha"])
@pytest.mark.parametrize("number", range(CHUNKS))
def test_an_engine_equals_the_model_that_it_was_given(layout, number):
    model = tiny_model(layout=layout)
    inputs = pass_inputs(model.config, number, batch=2, seed=number)
    held = int((inputs["slot_index"] >= 0).sum())
    made = engine(tiny_model(layout=layout))
    asked = StepInputs(**inputs)
    for got, wanted in zip(made.step(asked, held=held), model(**inputs), strict=True):
        assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert made.entries(asked, held=held).equal(made.step(asked, held=held)[1])


def test_an_engine_in_bfloat16_joins_products_too():
    model, narrow = tiny_model(), engine(tiny_model(), torch.bfloat16)
    assert attentions(narrow) == {FusedLatentAttention}
    inputs = pass_inputs(model.config, 3)
    cast = inputs | {name: inputs[name].bfloat16() for name in ("text_kv", "cache")}
    for got, wanted in zip(narrow.step(StepInputs(**cast)), model(**inputs), strict=True):
        assert_relative(got.float(), wanted, 0.05)


def test_products_are_joined_unless_attention_is_in_latent_space_or_they_are_measured_apart():
    assert attentions(engine(tiny_model())) == {FusedLatentAttention}
    apart = {"absorbed": True}, {"as_it_is": True}, {"optimizations": Optimizations(joined=False)}
    assert all(attentions(engine(tiny_model(), **each)) == {LatentAttention} for each in apart)


@pytest.mark.parametrize("rows", [1, 7])
def test_joined_products_are_packed_for_any_number_of_rows(rows):
    model = fused(tiny_model())
    made = packed(model, rows)
    assert not [part for part in made.modules() if isinstance(part, nn.Linear | JoinedProduct)]
    assert isinstance(made.blocks[0].attn1.expansion, PackedLinear)
    assert isinstance(model.blocks[0].attn1.expansion, JoinedProduct)  # it stays as it was
    inputs = pass_inputs(model.config, 2, seed=rows)
    for got, wanted in zip(made(**inputs), model(**inputs), strict=True):
        assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_an_engine_keeps_no_weight_that_was_joined_beside_the_one_that_it_was_joined_to():
    model = tiny_model()
    made = optimized(model, Place(device=CPU, dtype=torch.float32), Optimizations())
    names = {name for name, _ in made.blocks[0].attn1.named_modules()}
    assert names == {"", "norm_kv", "norm_q", "to_out", "down", "up_q", "expansion"}
    kept = {weight.data_ptr() for weight in made.parameters()}
    assert not kept & {part.weight.data_ptr() for part in model.modules() if isinstance(part, nn.Linear)}


@pytest.mark.parametrize("number", range(CHUNKS))
def test_a_pass_holds_no_more_than_the_model_s_own_at_once(number):
    model = tiny_model(num_attention_heads=4)
    inputs = pass_inputs(model.config, number)
    made = optimized(model, Place(device=CPU, dtype=torch.float32), Optimizations())
    assert peak_live_bytes(lambda: made(**inputs)) <= peak_live_bytes(lambda: model(**inputs))
