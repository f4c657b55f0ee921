"""Kernels of a block of `wan-1.3b` on an H100, counted in the code that Inductor writes for one."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from kit.fake_cuda import generated, hopper, launches

from runtime.engines.layers.gelu_epilogue import gelu_in_products
from runtime.engines.layers.wave_attention import Sizes, WaveAttention
from vmla.attention import Window
from vmla.config import named_config
from vmla.fused_attention import fused
from vmla.transformer import VideoMLA

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(find_spec("triton") is None, reason="Inductor writes Triton, which is not installed"),
]


def flash(query, keys, values):
    """A library's attention, as one call."""
    return torch.ops.aten._scaled_dot_product_flash_attention(query, keys, values)[0]


def kernels(monkeypatch, form):
    """Launches of a block in bfloat16, in a full window."""
    monkeypatch.setattr("vmla.attention.dense_attention", flash)
    monkeypatch.setattr("torch.compiler.is_exporting", lambda: True)  # without operations in place
    config = replace(named_config("wan-1.3b"), num_layers=1)
    own = config.chunk * config.tokens_per_frame
    cached = (config.sink + config.history) * config.tokens_per_frame

    with torch.device("meta"):
        block = form(VideoMLA(config)).blocks[0].bfloat16()
    with hopper() as mode:
        with mode:
            weights = {
                name: torch.empty(w.shape, dtype=w.dtype, device="cpu")
                for name, w in block.named_parameters()
            }
            shapes = {
                "x": (1, own, config.inner_dim),
                "modulation": (1, config.chunk, 6, config.inner_dim),
                "text_kv": (2, 1, config.text_tokens, config.inner_dim),
                "cached": (1, cached, config.entry_width),
            }
            given = [torch.empty(shape, dtype=torch.bfloat16) for shape in shapes.values()]
            turns = [torch.empty(cached + own, config.qk_rope_head_dim // 2) for _ in range(2)]

        def run(weights, x, modulation, text_kv, cached, cos, sin):
            arguments = (x, modulation, text_kv, cached, Window(None, cos, sin), False)
            return torch.func.functional_call(block, weights, arguments)

        return launches(generated(mode, run, weights, *given, *turns))


def test_joined_products_are_fewer_kernels(monkeypatch):
    plain, joined = (kernels(monkeypatch, form) for form in (lambda model: model, fused))
    assert plain["products"] - joined["products"] == 4
    assert joined["other"] == 2  # attention to the window, and to the text
    assert sum(joined.values()) + 4 <= sum(plain.values()) <= 27  # 22 and 27 with torch 2.13


def test_gelu_in_its_product_is_a_kernel_less(monkeypatch):
    apart, inside = (kernels(monkeypatch, form) for form in (fused, lambda m: gelu_in_products(fused(m))))
    assert apart["products"] - inside["products"] == 1
    assert inside["other"] - apart["other"] == 1  # the product, with bias and GELU, as one call of a library
    assert apart["triton"] - inside["triton"] == 1


def test_attention_in_waves_copies_nothing_into_place(monkeypatch):
    """Its queries, keys and values are views of products, as the library's are."""
    cut = WaveAttention(Sizes(1, 12, 4680, 15600), rows=4224, splits=2)
    whole, in_waves = (kernels(monkeypatch, lambda model, a=a: fused(model, a)) for a in (None, cut))
    assert in_waves == whole
