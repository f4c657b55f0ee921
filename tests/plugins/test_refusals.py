"""Wrong arguments are refused with the operator's name, the argument and what was expected."""

import logging
import subprocess
import sys

import pytest
import torch
from kit.tiny.windows import Case, head_window, latent_query, latent_window, projections

from plugins import dispatch as backends
from plugins import expand, mla_attention, mla_attention_absorbed

pytestmark = pytest.mark.cpu

CASE = Case(batch=2, heads=2, cached=6, own=4, content=16, rotary=8, nope=8, values=16, empty=())
F8 = torch.float8_e4m3fn


def attention(backend="auto", **changes):
    names = ("query", "keys", "values", "valid")
    given = dict(zip(names, head_window(CASE, seed=1), strict=True)) | {"backend": backend} | changes
    return mla_attention(*[given.pop(name) for name in names], **given)


def absorbed(**changes):
    names = ("query", "cached", "own", "cos", "sin", "valid", "scale")
    tensors = (latent_query(CASE, seed=2), *latent_window(CASE, seed=3), 0.25)
    given = dict(zip(names, tensors, strict=True)) | changes
    return mla_attention_absorbed(*[given.pop(name) for name in names], **given)


def expansion(**changes):
    names = ("cached", "own", "up_key", "up_value", "cos", "sin", "valid", "heads")
    cached, own, *tables = latent_window(CASE, seed=4)
    values = (cached, own, *projections(CASE, seed=5), *tables, CASE.heads)
    given = dict(zip(names, values, strict=True)) | changes
    return expand(*given.values())


REFUSED = [
    (attention, {"query": torch.rand(2, 4, 16)}, "mla_attention: query must be [B, N, S, d], not [2, 4, 16]"),
    (attention, {"keys": torch.rand(2, 2, 10, 8)},
     "mla_attention: keys must be [B, N, K, d] = [2, 2, 10, 16], not [2, 2, 10, 8]"),
    (attention, {"values": torch.rand(2, 2, 9, 16)},
     "mla_attention: values must be [B, N, K, dv] = [2, 2, 10, dv]"),
    (attention, {"values": torch.rand(2, 2, 10, 16).bfloat16()},
     "mla_attention: values must be float32 like query, not bfloat16"),
    (attention, {"valid": torch.ones(10)}, "mla_attention: valid must be bool, not float32"),
    (attention, {"keys": torch.rand(2, 2, 10, 16, device="meta")},
     "mla_attention: keys must be on cpu like query, not on meta"),
    (attention, {"query": torch.ones(2, 2, 4, 16, dtype=torch.int32)},
     "mla_attention: query must be float32, bfloat16, float16 or float8_e4m3fn, not int32"),
    (attention, {"query": torch.rand(2, 2, 4, 16).to(F8)},
     "mla_attention: float8 inputs need scales [3, N] = [3, 2]"),
    (attention, {"scales": torch.rand(3, 2)}, "mla_attention: scales come with float8 inputs only"),
    (attention, {"backend": "cuda"},
     "mla_attention: no such backend: cuda; there are auto, reference, sdpa, matmul, triton"),
    (attention, {"backend": "triton"}, "mla_attention: triton cannot take this: its kernels run on a GPU"),
    (absorbed, {"query": torch.rand(2, 2, 4, 16)},
     "mla_attention_absorbed: query must be [B, N, S, E] = [2, N, S, 24]"),
    (absorbed, {"own": torch.rand(1, 4, 24)}, "mla_attention_absorbed: own must be [B, S, E] = [2, S, 24]"),
    (absorbed, {"valid": torch.ones(9, dtype=torch.bool)},
     "mla_attention_absorbed: valid must be [K] = [10], not [9]"),
    (absorbed, {"scale": 0.0}, "mla_attention_absorbed: scale must be positive and finite, not 0.0"),
    (expansion, {"cos": torch.rand(9, 4)}, "expand: cos must be [K, R / 2] = [10, R / 2], not [9, 4]"),
    (expansion, {"sin": torch.rand(10, 4).half()}, "expand: sin must be float32, not float16"),
    (expansion, {"up_key": torch.rand(16, 15)},
     "expand: up_key must be [a multiple of N = 2, C = 16], not [16, 15]"),
    (expansion, {"up_value": torch.rand(33, 16)}, "expand: up_value must be [a multiple of N = 2, C = 16]"),
    (expansion, {"cached": torch.rand(6, 24)}, "expand: cached must be [B, T, E], not [6, 24]"),
    (expansion, {"heads": 0}, "expand: heads must be at least 1, not 0"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "changes", "message"), REFUSED)
def test_refused(call, changes, message):
    with pytest.raises((ValueError, TypeError)) as refusal:
        call(**changes)
    assert str(refusal.value).startswith(f"vmla::{message}")


@pytest.mark.parametrize("call", [attention, absorbed, expansion])
def test_the_same_arguments_unchanged_are_taken(call):
    out = call()
    assert all(part.isfinite().all() for part in (out if isinstance(out, tuple) else (out,)))


def test_a_fallback_says_why_once(monkeypatch, caplog):
    monkeypatch.setattr(backends, "_suits_kernels", lambda first: True)
    backends._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="plugins.dispatch"):
        attention()  # a library does that as well
        first, second = absorbed(), absorbed()
    assert torch.equal(first, second)
    assert [record.getMessage() for record in caplog.records] == [
        "vmla::mla_attention_absorbed takes sdpa instead of triton: its kernels run on a GPU, or on a CPU "
        "under TRITON_INTERPRET=1, and not on cpu"
    ]


def test_importing_the_model_loads_neither_triton_nor_tensorrt():
    code = "import sys, vmla.transformer; print([m for m in ('triton', 'tensorrt') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
