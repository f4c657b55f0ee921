"""Two matrix products instead of a fused kernel: equal to the reference, eager and traced."""

import pytest
import torch
from kit.measure import assert_relative
from kit.tiny.windows import Case, head_window

from plugins import dense_attention, expand, mla_attention, reference
from plugins.dispatch import choose

pytestmark = pytest.mark.cpu

CASE = Case(batch=2, heads=3, cached=7, own=5, content=8, rotary=4, nope=12, values=16, empty=(1, 2))


class Attend(torch.nn.Module):
    """The operator, where `export` can see it."""

    def forward(self, query, keys, values, valid):
        return mla_attention(query, keys, values, valid, backend="matmul")


def traced(*inputs):
    return torch.export.export(Attend(), inputs).run_decompositions().module()(*inputs)


@pytest.mark.parametrize("run", [Attend(), traced], ids=["eager", "traced"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str)
def test_it_equals_the_reference(run, dtype, bound):
    inputs = head_window(CASE, seed=1, dtype=dtype, poison=float("nan"))
    wide = [x.float() if x.is_floating_point() else x for x in inputs]
    assert_relative(run(*inputs), reference.attention(*wide), bound)


@pytest.mark.parametrize("run", [Attend(), traced], ids=["eager", "traced"])
def test_a_window_without_a_valid_key_gives_zeros(run):
    *tensors, valid = head_window(CASE, seed=2, poison=0.0)
    nothing = torch.zeros_like(valid)
    out = run(*tensors, nothing)
    assert torch.equal(out, torch.zeros_like(out))


def test_it_is_chosen_for_bfloat16_on_a_cpu_alone():
    for dtype, backend in ((torch.bfloat16, "matmul"), (torch.float32, "sdpa")):
        assert choose("mla_attention", "auto", head_window(CASE, seed=3, dtype=dtype)) == backend


def test_it_is_no_backend_of_the_others():
    x = torch.randn(1, 2, 12)
    table = torch.ones(4, 2)
    with pytest.raises(ValueError, match="vmla::mla_attention alone"):
        weight = torch.randn(4, 8)
        expand(x, x, weight, weight, table, table, torch.ones(4, dtype=torch.bool), 2, backend="matmul")


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str)
def test_attention_to_all_keys_equals_the_reference(dtype, bound):
    query, keys, values, valid = head_window(CASE, seed=4, dtype=dtype, poison=0.0)
    everything = torch.ones_like(valid)
    want = reference.attention(query.float(), keys.float(), values.float(), everything)
    assert_relative(dense_attention(query, keys, values), want, bound)
