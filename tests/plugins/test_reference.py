"""Every backend equals formulas in float64 that share nothing with the operator's code."""

import numpy as np
import pytest
import torch
from kit.measure import assert_close, assert_relative
from kit.tiny.windows import Case, draw, head_window, latent_query, latent_window, projections

from plugins import expand, mla_attention, mla_attention_absorbed
from vmla.config import named_config

pytestmark = pytest.mark.cpu

CASE = Case()
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
BACKENDS = ["reference", "sdpa"]


def softmax_sum(query, keys, values, valid, scale):
    """One query after the other over the valid keys only."""
    out = np.zeros((*query.shape[:-1], values.shape[-1]))
    kept = np.flatnonzero(valid)
    for place in np.ndindex(*query.shape[:-1]):
        batch, head = place[:2]
        scores = keys[batch, head][kept] @ query[place] * scale
        weights = np.exp(scores - scores.max())
        out[place] = weights / weights.sum() @ values[batch, head][kept]
    return torch.from_numpy(out)


def turned(x, cos, sin):
    """Pairs of channels as complex numbers."""
    pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * (cos + 1j * sin)
    return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)


def doubles(*tensors):
    return [tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy() for tensor in tensors]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention(backend, dtype):
    inputs = head_window(CASE, seed=1, dtype=dtype)
    expected = softmax_sum(*doubles(*inputs), 64**-0.5)
    assert_relative(mla_attention(*inputs, backend=backend), expected, LIMITS[dtype])


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_absorbed(backend, dtype):
    query, window = latent_query(CASE, seed=2, dtype=dtype), latent_window(CASE, seed=3, dtype=dtype)
    cached, own, cos, sin, valid = doubles(*window)
    entries = np.concatenate([cached, own], 1)
    content, rotary = entries[..., : CASE.content], turned(entries[..., CASE.content :], cos, sin)
    keys = np.repeat(np.concatenate([content, rotary], -1)[:, None], CASE.heads, 1)
    values = np.repeat(content[:, None], CASE.heads, 1)
    expected = softmax_sum(*doubles(query), keys, values, valid, 0.125)
    out = mla_attention_absorbed(query, *window, 0.125, backend=backend)
    assert_relative(out, expected, LIMITS[dtype])


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_expand(backend, dtype):
    cached, own, cos, sin, valid = latent_window(CASE, seed=4, dtype=dtype)
    up_key, up_value = projections(CASE, seed=5, dtype=dtype)
    keys, values = expand(cached, own, up_key, up_value, cos, sin, valid, CASE.heads, backend=backend)
    entries = np.nan_to_num(np.concatenate(doubles(cached, own), 1))
    content, rotary = entries[..., : CASE.content], turned(entries[..., CASE.content :], *doubles(cos, sin))
    for head in range(CASE.heads):
        key_rows, value_rows = (
            weight.unflatten(0, (CASE.heads, -1))[head].double().numpy() for weight in (up_key, up_value)
        )
        expected = np.concatenate([content @ key_rows.T, rotary], -1)
        assert_relative(keys[:, head], torch.from_numpy(expected), LIMITS[dtype])
        assert_relative(values[:, head], torch.from_numpy(content @ value_rows.T), LIMITS[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
def test_absorbed_equals_expanded(backend):
    cached, own, cos, sin, valid = latent_window(CASE, seed=6)
    up_key, up_value = projections(CASE, seed=7)
    query = draw(CASE.batch, CASE.heads, CASE.own, CASE.nope + CASE.rotary, seed=8)
    window = (cos, sin, valid)
    keys, values = expand(cached, own, up_key, up_value, *window, CASE.heads, backend=backend)
    expected = mla_attention(query, keys, values, valid, backend=backend)
    nope, rotary = query.split([CASE.nope, CASE.rotary], -1)
    inner = torch.cat([nope @ up_key.unflatten(0, (CASE.heads, -1)), rotary], -1)
    scale = query.shape[-1] ** -0.5
    sums = mla_attention_absorbed(inner, cached, own, *window, scale, backend=backend)
    assert_relative(sums @ up_value.unflatten(0, (CASE.heads, -1)).transpose(1, 2), expected, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_what_lies_in_empty_slots_does_not_matter(backend, poison):
    zero, poisoned = ({"seed": 9, "poison": value} for value in (0.0, poison))
    clean = mla_attention(*head_window(CASE, **zero), backend=backend)
    assert_close(mla_attention(*head_window(CASE, **poisoned), backend=backend), clean, rtol=0, atol=0)
    query = latent_query(CASE, seed=10)
    clean = mla_attention_absorbed(query, *latent_window(CASE, **zero), 0.1, backend=backend)
    out = mla_attention_absorbed(query, *latent_window(CASE, **poisoned), 0.1, backend=backend)
    assert_close(out, clean, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_valid_slot_gives_its_value_and_none_gives_zero(backend):
    query, keys, values, valid = head_window(CASE, seed=11)
    valid[:] = False
    nothing = mla_attention(query, keys, values, valid, backend=backend)
    assert_close(nothing, torch.zeros(query.shape), rtol=0, atol=0)
    valid[20] = True
    expected = values[:, :, 20:21].expand_as(query)
    assert_close(mla_attention(query, keys, values, valid, backend=backend), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_order_of_slots_does_not_matter(backend):
    cached, own, cos, sin, valid = latent_window(CASE, seed=12)
    query = latent_query(CASE, seed=13)
    expected = mla_attention_absorbed(query, cached, own, cos, sin, valid, 0.1, backend=backend)
    order = torch.cat([torch.randperm(CASE.cached), torch.arange(CASE.cached, CASE.keys)])
    window = (cached[:, order[: CASE.cached]], own, cos[order], sin[order], valid[order])
    assert_relative(mla_attention_absorbed(query, *window, 0.1, backend=backend), expected, 1e-5)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_float8_stays_within_its_own_rounding(backend):
    """The inputs are rounded once; what remains is the rounding of the result to bfloat16."""
    case = Case(empty=())
    *tensors, valid = head_window(case, seed=14)
    scales = torch.rand(3, case.heads) * 0.05 + 0.01
    narrow = [(x / s[:, None, None]).to(torch.float8_e4m3fn) for x, s in zip(tensors, scales, strict=True)]
    wide = [x.double() * s.double()[:, None, None] for x, s in zip(narrow, scales, strict=True)]
    expected = softmax_sum(*doubles(*wide, valid), 64**-0.5)
    out = mla_attention(*narrow, valid, scales=scales, backend=backend)
    assert out.dtype == torch.bfloat16
    assert_relative(out, expected, 1e-2)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_float8_absorbed(backend):
    case = Case(empty=(2, 3))
    scales = torch.rand(2, case.heads) * 0.05 + 0.01
    query = (latent_query(case, seed=15) / scales[0][:, None, None]).to(torch.float8_e4m3fn)
    cached, own, cos, sin, valid = latent_window(case, seed=16)
    cached, own = ((x / 0.02).to(torch.float8_e4m3fn) for x in (cached, own))
    out = mla_attention_absorbed(query, cached, own, cos, sin, valid, 0.1, scales=scales, backend=backend)
    head = 1
    factor = scales[:, head].double()
    expected = mla_attention_absorbed(
        query[:, head : head + 1].double() * factor[0],
        cached.double() * factor[1],
        own.double() * factor[1],
        cos.double(),
        sin.double(),
        valid,
        0.1,
        backend="reference",
    )
    assert_relative(out[:, head : head + 1], expected, 1e-2)


def test_the_published_widths_are_those_of_the_large_recipe():
    """The kernels' shapes follow from the model: 12 heads, 96 + 32 and 128 wide, latent 192."""
    config = named_config("wan-1.3b")
    widths = (
        config.num_attention_heads,
        config.qk_nope_head_dim,
        config.qk_rope_head_dim,
        config.attention_head_dim,
        config.kv_lora_rank,
    )
    assert widths == (12, 96, 32, 128, 192)
