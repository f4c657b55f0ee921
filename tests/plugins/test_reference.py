"""The reference of the attention operator is the paper's equations, and all else equals it."""

import pytest
import torch
from kit.measure import assert_close
from kit.models import draw

from plugins import expand, mla_attention, mla_attention_absorbed, reference

pytestmark = pytest.mark.cpu

B, N, S, K, C, R, DN, DV = 2, 3, 4, 7, 6, 4, 5, 8
VALID = torch.tensor([True, False, True, True, False, True, True])


def inputs(dtype=torch.float32):
    """Queries, entries, both up-projections, and cosines and sines of random angles."""
    angles = 9 * draw(K, R // 2, seed=6)
    shapes = [(B, N, S, DN), (B, N, S, R), (B, K, C + R), (N * DN, C), (N * DV, C)]
    drawn = [draw(*shape, seed=seed).to(dtype) for seed, shape in enumerate(shapes)]
    return [*drawn, angles.to(dtype).cos(), angles.to(dtype).sin()]


def by_formula(q_nope, q_rotary, entries, up_key, up_value, cos, sin, valid=VALID):
    """o[h, i] = sum_j softmax_j((q_nope . W_uK[h] c_j + q_R . RoPE(k_j)) / sqrt(dn + R)) W_uV[h] c_j.

    In float64, one query at a time, over the valid keys alone.
    """
    q_nope, q_rotary, entries, up_key, up_value = (
        x.double() for x in (q_nope, q_rotary, entries, up_key, up_value)
    )
    turns = torch.complex(cos.double(), sin.double())
    out = torch.zeros(B, N, S, DV).double()
    for b, h, i in torch.cartesian_prod(torch.arange(B), torch.arange(N), torch.arange(S)):
        w_k, w_v = up_key[h * DN : (h + 1) * DN], up_value[h * DV : (h + 1) * DV]
        scores, values = [], []
        for j in range(K):
            content, rotary = entries[b, j, :C], entries[b, j, C:]
            pairs = torch.view_as_complex(rotary.reshape(-1, 2)) * turns[j]
            turned = torch.view_as_real(pairs).flatten()
            score = q_nope[b, h, i] @ (w_k @ content) + q_rotary[b, h, i] @ turned
            scores.append(score / (DN + R) ** 0.5)
            values.append(w_v @ content)
        weights = torch.stack(scores)[valid].softmax(0)
        out[b, h, i] = weights @ torch.stack(values)[valid]
    return out


def expanded(attention, q_nope, q_rotary, entries, up_key, up_value, cos, sin, valid=VALID):
    keys, values = expand(entries, up_key, up_value, cos, sin, N)
    return attention(torch.cat([q_nope, q_rotary], dim=-1), keys, values, valid)


def absorbed(attention, q_nope, q_rotary, entries, up_key, up_value, cos, sin, valid=VALID):
    """With W_uK[h] folded into the queries, and W_uV[h] into what comes out."""
    query = torch.cat([q_nope @ up_key.unflatten(0, (N, DN)), q_rotary], dim=-1)
    turned = reference.rotate_pairs(entries[..., C:], cos, sin)
    shared = torch.cat([entries[..., :C], turned], dim=-1)
    sums = attention(query, shared, valid, content_width=C, scale=(DN + R) ** -0.5)
    return sums @ up_value.unflatten(0, (N, DV)).transpose(1, 2)


FORMS = {
    "reference": lambda *given: expanded(reference.attention, *given),
    "reference, absorbed": lambda *given: absorbed(reference.attention_absorbed, *given),
    "operator": lambda *given: expanded(mla_attention, *given),
    "operator, absorbed": lambda *given: absorbed(mla_attention_absorbed, *given),
}


@pytest.fixture(params=FORMS, ids=str)
def form(request):
    return FORMS[request.param]


def test_each_form_equals_the_formula(form):
    given = inputs()
    assert_close(form(*given), by_formula(*given), rtol=1e-4, atol=1e-5)


def test_each_form_is_exact_in_float64(form):
    given = inputs(torch.float64)
    assert_close(form(*given), by_formula(*given), rtol=1e-10, atol=1e-12)


def test_each_form_narrows_its_result_alone(form):
    """In bfloat16 the result is off by the rounding of inputs and output, not more."""
    given = inputs(torch.bfloat16)
    out = form(*given)
    assert out.dtype == torch.bfloat16
    assert_close(out, by_formula(*given), rtol=0, atol=0.03 * float(by_formula(*given).abs().max()))


def test_an_invalid_key_contributes_nothing(form):
    given = inputs()
    once = form(*given)
    given[2][:, ~VALID] += 100
    assert torch.equal(form(*given), once)
    given[2][:, 0] += 1
    assert (form(*given) - once).abs().max() > 1e-2


def test_a_lone_valid_key_is_copied(form):
    given, alone = inputs(), torch.arange(K) == 3
    value = (given[2][:, 3, :C] @ given[4].T).unflatten(-1, (N, DV))[:, :, None].expand(-1, -1, S, -1)
    assert_close(form(*given, alone), value, rtol=1e-4, atol=1e-5)


def test_expansion_is_written_out():
    _, _, entries, up_key, up_value, cos, sin = inputs()
    keys, values = expand(entries, up_key, up_value, cos, sin, N)
    assert keys.shape == (B, N, K, DN + R)
    assert values.shape == (B, N, K, DV)
    content = entries[..., :C]
    for head in range(N):
        own_key, own_value = up_key[head * DN : (head + 1) * DN], up_value[head * DV : (head + 1) * DV]
        assert_close(keys[:, head, :, :DN], content @ own_key.T, rtol=1e-5, atol=1e-5)
        assert_close(values[:, head], content @ own_value.T, rtol=1e-5, atol=1e-5)
        assert torch.equal(keys[:, head, :, DN:], keys[:, 0, :, DN:])


def test_turning_pairs_is_complex_multiplication():
    x, angles = draw(2, 3, K, R), 5 * draw(K, R // 2, seed=1)
    turns = torch.polar(torch.ones(()), angles)
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)
    assert_close(reference.rotate_pairs(x, angles.cos(), angles.sin()), expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_finite_differences(form):
    given = [tensor.requires_grad_(True) for tensor in inputs(torch.float64)[:5]]
    angles = inputs(torch.float64)[5:]
    assert torch.autograd.gradcheck(lambda *xs: form(*xs, *angles), given, fast_mode=True)


@pytest.mark.parametrize("name", ["reference", "sdpa"])
def test_a_backend_can_be_named(name):
    given = inputs()
    one = expanded(lambda *xs: mla_attention(*xs, backend=name), *given)
    other = absorbed(lambda *xs, **ws: mla_attention_absorbed(*xs, **ws, backend=name), *given)
    assert_close(one, by_formula(*given), rtol=1e-4, atol=1e-5)
    assert_close(other, by_formula(*given), rtol=1e-4, atol=1e-5)
