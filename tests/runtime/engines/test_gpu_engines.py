"""What only a GPU can show of the eager engine's layers: GELU in its product, and attention in waves."""

import pytest
import torch
import torch.nn.functional as F
from kit.measure import assert_relative

from plugins.operator import dense_attention
from runtime.engines.layers.gelu_epilogue import reference
from runtime.engines.layers.wave_attention import Sizes, WaveAttention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

TYPES = (torch.bfloat16, torch.float16)


def drawn(*shape, dtype):
    return torch.randn(*shape, device="cuda").to(dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_gelu_inside_its_product_is_the_tanh_form(dtype):
    x, weight, bias = (
        drawn(2, 64, 256, dtype=dtype),
        drawn(512, 256, dtype=dtype) / 16,
        drawn(512, dtype=dtype),
    )
    made = torch.ops.vmla.linear_gelu(x, weight, bias)
    wide = [tensor.float() for tensor in (x, weight, bias)]
    assert_relative(made, reference(*wide).to(dtype), 1e-2)
    other = F.gelu(F.linear(*wide))
    assert (made - reference(*wide)).abs().mean() < (made - other).abs().mean()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("splits", [1, 2, 3])
def test_attention_in_waves_is_attention(dtype, splits):
    heads, width = 12, 128
    query = drawn(1, 4680, heads, width, dtype=dtype).transpose(1, 2)
    made = drawn(1, 9360, 2, heads, width, dtype=dtype)
    keys, values = (made[:, :, part].transpose(1, 2) for part in range(2))
    out = WaveAttention(Sizes.of(query, keys), 4224, splits).cut(query, keys, values)
    assert_relative(out, dense_attention(query, keys, values), 1e-2)
