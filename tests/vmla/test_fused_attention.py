"""Latent attention with joined products equals the plain form at every fill level, with fewer operations."""

from collections import Counter

import pytest
import torch
from kit.measure import assert_close, assert_relative
from kit.tiny.models import draw, tiny_config, tiny_model
from kit.tiny.passes import pass_inputs
from torch.utils._python_dispatch import TorchDispatchMode

from vmla.attention import LatentAttention
from vmla.fused_attention import FusedLatentAttention, QueriesApart, fused
from vmla.transformer import Block

pytestmark = pytest.mark.cpu

FULL = 3
"""A chunk of the tiny models whose window is full."""
COPIES = {"aten.cat", "aten.clone", "aten.copy_", "aten.stack"}


class Counted(TorchDispatchMode):
    """Counts the operations that reach the dispatcher."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()
        self.copied = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket)
        self.seen[name] += 1
        if name in COPIES:
            self.copied += out.numel()
        return out


APART = ("blocks.0.attn1.up_q", "blocks.1.attn1.down_q")
"""Query layers of both blocks of the tiny models."""


@pytest.mark.parametrize("full", [False, True], ids=["masked", "full"])
@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("apart", [(), APART], ids=["joined", "queries apart"])
def test_it_equals_the_plain_form_at_every_fill_level(number, full, apart):
    model = tiny_model()
    inputs = pass_inputs(model.config, number, batch=2, seed=number)
    full = full and bool((inputs["slot_index"] >= 0).all())
    again = fused(model, apart)
    kind = QueriesApart if apart else FusedLatentAttention
    assert {type(block.attn1) for block in again.blocks} == {kind}
    for made, wanted in zip(again(**inputs, full=full), model(**inputs, full=full), strict=True):
        assert_close(made, wanted, rtol=1e-4, atol=1e-5)
    assert_close(again.entries(**inputs, full=full), model.entries(**inputs, full=full), rtol=1e-4, atol=1e-5)


def test_it_equals_the_plain_form_in_bfloat16():
    model = tiny_model().bfloat16()
    inputs = pass_inputs(model.config, FULL)
    narrow = {name: inputs[name].bfloat16() for name in ("latents", "text_kv", "cache")}
    for made, wanted in zip(fused(model)(**inputs | narrow), model(**inputs | narrow), strict=True):
        assert_relative(made, wanted, 0.03)


def test_keys_and_values_are_views_of_one_product_and_bitwise_those_of_the_plain_form():
    config = tiny_config()
    plain = tiny_model().blocks[0].attn1.bfloat16()
    joined = FusedLatentAttention(plain)
    entries = draw(2, 7, config.entry_width).bfloat16()
    window = Recorder(
        draw(7, config.qk_rope_head_dim // 2, seed=1), draw(7, config.qk_rope_head_dim // 2, seed=2)
    )
    keys, values = joined._keys_values(entries[:, :4], entries[:, 4:], window)
    assert keys.untyped_storage().data_ptr() == values.untyped_storage().data_ptr()
    query = draw(2, 3, config.inner_dim).bfloat16()
    plain(query, entries[:, :4], window)
    wanted = window.keys, window.values
    for made, expected in zip((keys, values), wanted, strict=True):
        assert made.transpose(1, 2)[:, :, :4].equal(expected[:, :, :4])


class Recorder:
    """A full window that keeps the keys and values that are attended to."""

    full = True

    def __init__(self, cos, sin):
        self.valid, self.cos, self.sin = torch.ones(len(cos), dtype=torch.bool), cos, sin

    def own(self, tokens):
        return self.cos[-tokens:], self.sin[-tokens:]

    def gathered(self, own):
        return own

    def before(self, cached, own):
        return cached

    def attend(self, query, keys, values):
        self.keys, self.values = keys, values
        return query


def operations(model):
    inputs = pass_inputs(model.config, FULL)
    with torch.inference_mode(), Counted() as counted:
        model(**inputs, full=True)
    return counted


def test_a_block_has_fewer_products_and_copies_less():
    model = tiny_model(num_layers=1)
    plain, joined = operations(model), operations(fused(model))
    products = [sum(c.seen[f"aten.{name}"] for name in ("linear", "mm", "addmm")) for c in (plain, joined)]
    assert products[0] - products[1] == 4  # 3 down, 2 of queries and 2 of the expansion become 3
    assert joined.copied < plain.copied
    assert sum(joined.seen.values()) < sum(plain.seen.values())


def test_only_the_named_query_layers_stay_apart_and_they_are_the_model_s():
    model = tiny_model()
    first, second = (block.attn1 for block in fused(model, ["blocks.1.attn1.up_q", "blocks.0.ffn.up"]).blocks)
    assert (type(first), type(second)) == (FusedLatentAttention, QueriesApart)
    assert second.up_q is model.blocks[1].attn1.up_q
    assert type(fused(model.blocks[1], ["blocks.1.attn1.up_q"], name="blocks.1").attn1) is QueriesApart


def test_a_block_is_traced_in_one_piece():
    block = fused(tiny_model(num_layers=1)).blocks[0]
    window = Recorder(draw(7, 4, seed=1), draw(7, 4, seed=2))
    given = draw(1, 3, 32), draw(1, 1, 6, 32), draw(2, 1, 5, 32), draw(1, 4, 20), window, False
    with torch.inference_mode():
        made = torch.compile(Block.forward, backend="aot_eager", fullgraph=True, dynamic=False)(block, *given)
        for out, wanted in zip(made, block(*given), strict=True):
            assert_close(out, wanted, rtol=1e-5, atol=1e-6)


def test_the_model_that_it_was_made_from_stays_as_it_was():
    model = tiny_model()
    names = [name for name, _ in model.named_parameters()]
    again = fused(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(isinstance(block.attn1, LatentAttention) for block in model.blocks)
    assert again.blocks[0].ffn.up.weight is model.blocks[0].ffn.up.weight
    assert again.encode_text(draw(1, 5, 10)).equal(model.encode_text(draw(1, 5, 10)))


def test_the_layout_of_whole_heads_is_left_alone():
    model = tiny_model(layout="mha")
    inputs = pass_inputs(model.config, FULL)
    for made, wanted in zip(fused(model)(**inputs), model(**inputs), strict=True):
        assert made.equal(wanted)


def test_it_has_no_absorbed_form():
    with pytest.raises(ValueError, match="no absorbed form"):
        fused(tiny_model())(**pass_inputs(tiny_config(), FULL), absorbed=True)


def test_attention_of_another_class_is_left_as_it_is():
    class Other(LatentAttention):
        """May attend otherwise."""

    model = tiny_model()
    model.blocks[1].attn1 = Other(model.config)
    made = fused(model)
    assert isinstance(made.blocks[0].attn1, FusedLatentAttention)
    assert type(made.blocks[1].attn1) is Other
