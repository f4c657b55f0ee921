"""Kernels of a block of `wan-1.3b` on an H100, in bfloat16 and float8, counted in Inductor's code for one."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from kit.stand_ins.fake_cuda import generated, hopper, launches

from plugins.fp8 import cudnn_attention
from runtime.engines.layers.fp8_attention import Fp8Attention, full_window
from runtime.engines.layers.fp8_linear import in_fp8, quantisable
from runtime.engines.layers.gelu_epilogue import gelu_in_products
from runtime.engines.layers.wave_attention import Sizes, WaveAttention
from vmla.attention import Window
from vmla.config import named_config
from vmla.fused_attention import attending, fused
from vmla.transformer import VideoMLA

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(find_spec("triton") is None, reason="Inductor writes Triton, which is not installed"),
]


def flash(query, keys, values):
    """A library's attention, as one call."""
    return torch.ops.aten._scaled_dot_product_flash_attention(query, keys, values)[0]


def plain(model):
    """The model's own products."""
    return model


def queries_in_float8(model):
    """As the eager engine has it: most layers in float8, all products joined that are not."""
    return in_fp8(fused(model, [name for name, _ in quantisable(model)]))


def queries_in_bfloat16(model):
    """All of attention's products joined, and so most layers in float8 but those of the queries."""
    return in_fp8(fused(model))


def kernels(monkeypatch, form):
    """Launches of the middle one of three blocks in bfloat16, which float8 is for, in a full window."""
    monkeypatch.setattr("vmla.attention.dense_attention", flash)
    monkeypatch.setattr("torch.compiler.is_exporting", lambda: True)  # without operations in place
    config = replace(named_config("wan-1.3b"), num_layers=3)
    own = config.chunk * config.tokens_per_frame
    cached = (config.sink + config.history) * config.tokens_per_frame

    with torch.device("meta"):
        block = form(VideoMLA(config).bfloat16()).blocks[1]
    with hopper() as mode:
        with mode:
            weights = {
                name: torch.empty(w.shape, dtype=w.dtype, device="cpu")
                for name, w in (*block.named_parameters(), *block.named_buffers())
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
    apart, joined = (kernels(monkeypatch, form) for form in (plain, fused))
    assert apart["products"] - joined["products"] == 4
    assert joined["other"] == 2  # attention to the window, and to the text
    assert sum(joined.values()) + 4 <= sum(apart.values()) <= 27  # 22 and 27 with torch 2.13


def test_attention_in_fp8_is_one_call_and_quantising_for_it_a_few_kernels(monkeypatch):
    def narrow(model):
        return attending(fused(model), Fp8Attention(full_window(model.config), cudnn_attention.attend))

    wide, made = (kernels(monkeypatch, form) for form in (fused, narrow))
    assert (made["products"], made["other"]) == (wide["products"], 2)
    # For each of three tensors the largest magnitude, in two stages, and the codes; the output in bfloat16.
    assert made["triton"] <= wide["triton"] + 10


def test_float8_adds_products_of_codes_but_few_kernels_that_make_them(monkeypatch):
    # Codes are made by the kernel that makes the numbers: a norm, an activation. Only those of the two
    # attentions' results, which a library has made, take a kernel of their own.
    wide = kernels(monkeypatch, fused)
    narrow, queries = (kernels(monkeypatch, form) for form in (queries_in_bfloat16, queries_in_float8))
    assert narrow["products"] == wide["products"]
    assert narrow["triton"] - wide["triton"] <= 2  # 14 and 12 with torch 2.13
    assert queries["products"] - narrow["products"] == 2
    assert queries["triton"] <= narrow["triton"]
    assert queries["other"] == narrow["other"] == wide["other"]
    apart = kernels(monkeypatch, in_fp8)
    assert apart["products"] - queries["products"] == 2
    assert sum(queries.values()) + 2 <= sum(apart.values()) <= 28  # 26 and 28 with torch 2.13


def test_gelu_in_its_product_is_a_kernel_less(monkeypatch):
    apart, inside = (kernels(monkeypatch, form) for form in (fused, lambda m: gelu_in_products(fused(m))))
    assert apart["products"] - inside["products"] == 1
    assert inside["other"] - apart["other"] == 1  # the product, with bias and GELU, as one call of a library
    assert apart["triton"] - inside["triton"] == 1


def test_attention_in_waves_copies_nothing_into_place(monkeypatch):
    """Its queries, keys and values are views of products, as the library's are."""
    cut = WaveAttention(Sizes(1, 12, 4680, 15600), rows=4224, splits=2)
    whole, in_waves = (kernels(monkeypatch, form) for form in (fused, lambda m: attending(fused(m), cut)))
    assert in_waves == whole
