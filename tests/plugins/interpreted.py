"""Runs the kernels under Triton's interpreter, in a process of its own, and compares with the reference.

Run with TRITON_INTERPRET=1; prints what is wrong with each, as JSON.
"""

import itertools
import json
import sys
from dataclasses import replace

import kit.stand_ins.interpreter  # noqa: F401
import torch
from kit.measure import assert_relative
from kit.tiny.windows import Case, draw, head_window, latent_query, latent_window, projections, scales_of

from plugins import expand, mla_attention, mla_attention_absorbed
from plugins.operator import dense_attention
from plugins.triton import launch
from runtime.engines.layers.wave_attention import Sizes, WaveAttention

CASES = [
    Case(),
    Case(batch=1, heads=12, own=24, content=48, rotary=8, nope=24, values=32, empty=(*range(32), 36)),
    Case(batch=1, cached=33, own=1, content=16, rotary=8, nope=8, values=16, empty=tuple(range(33))),
    Case(batch=2, cached=83, own=30, empty=()),
]
"""Odd sizes; all heads and a whole empty block; one single valid token; none empty."""
LIMITS = {torch.bfloat16: 1e-2, torch.float16: 2e-3}
FLOAT8_LIMIT = 4e-2
"""Weights are rounded to e4m3, by at most 1 / 16 of each; the errors of a sum partly cancel."""


def check_expand():
    for case in CASES:
        for dtype, limit in LIMITS.items():
            cached, own, *tables = latent_window(case, seed=1, dtype=dtype)
            inputs = (cached, own, *projections(case, seed=2, dtype=dtype), *tables, case.heads)
            for out, expected in zip(expand(*inputs, backend="triton"), expand(*inputs), strict=True):
                assert_relative(out, expected, limit)


def check_attention():
    for case in CASES:
        case = widths_of_powers(case)
        for dtype, limit in LIMITS.items():
            inputs = head_window(case, seed=3, dtype=dtype)
            expected = mla_attention(*inputs, backend="reference")
            assert_relative(mla_attention(*inputs, backend="triton"), expected, limit)
            assert_relative(launch.attention(*inputs, None, splits=3), expected, limit)


def check_waves():
    for case, (dtype, limit) in itertools.product(CASES, LIMITS.items()):
        case = replace(widths_of_powers(case), empty=())
        for inputs in (views(case, dtype), head_window(case, seed=3, dtype=dtype)[:3]):
            sizes = Sizes.of(*inputs[:2])
            expected = dense_attention(*(tensor.float() for tensor in inputs))
            for rows, splits in ((1, 1), (case.own // 2, 2), (case.own - 1, 3)):
                if 0 < rows < case.own:
                    out = WaveAttention(sizes, rows, splits).cut(*inputs)
                    assert_relative(out, expected.to(dtype), limit)


def views(case, dtype):
    """Query, keys and values that lie in memory as [B, tokens, N, width], the last two of one product."""
    width = case.nope + case.rotary
    query = draw(case.batch, case.own, case.heads, width, seed=11, dtype=dtype)
    made = draw(case.batch, case.keys, case.heads * (width + case.values), seed=12, dtype=dtype)
    keys, values = made.split([case.heads * width, case.heads * case.values], dim=-1)
    parts = (query, keys.unflatten(-1, (case.heads, -1)), values.unflatten(-1, (case.heads, -1)))
    return [part.transpose(1, 2) for part in parts]


def check_absorbed():
    for case in CASES:
        for dtype, limit in LIMITS.items():
            query = latent_query(case, seed=4, dtype=dtype)
            inputs = (query, *latent_window(case, seed=5, dtype=dtype), 0.15)
            expected = mla_attention_absorbed(*inputs, backend="reference")
            assert_relative(mla_attention_absorbed(*inputs, backend="triton"), expected, limit)
            assert_relative(launch.absorbed(*inputs, None, splits=2), expected, limit)


def check_float8():
    case = widths_of_powers(CASES[0])
    *tensors, valid = head_window(case, seed=6)
    scales = scales_of(3, case.heads, spread=0.02)
    narrow = [(x / s[:, None, None]).to(torch.float8_e4m3fn) for x, s in zip(tensors, scales, strict=True)]
    expected = mla_attention(*narrow, valid, scales=scales, backend="reference")
    out = mla_attention(*narrow, valid, scales=scales, backend="triton")
    assert_relative(out, expected, FLOAT8_LIMIT)


def check_float8_absorbed():
    case, scales = CASES[0], scales_of(2, 3, spread=0.02)
    query = (latent_query(case, seed=7) / scales[0][:, None, None]).to(torch.float8_e4m3fn)
    cached, own, *tables = latent_window(case, seed=8)
    window = ((cached / 0.02).to(torch.float8_e4m3fn), (own / 0.02).to(torch.float8_e4m3fn), *tables)
    expected = mla_attention_absorbed(query, *window, 0.1, scales=scales, backend="reference")
    out = mla_attention_absorbed(query, *window, 0.1, scales=scales, backend="triton")
    assert_relative(out, expected, FLOAT8_LIMIT)


def check_nothing_valid():
    query, keys, values, valid = head_window(widths_of_powers(CASES[0]), seed=9)
    inputs = (query.half(), keys.half(), values.half(), torch.zeros_like(valid))
    assert launch.attention(*inputs, None, splits=1).eq(0).all()
    assert launch.attention(*inputs, None, splits=2).eq(0).all()


def widths_of_powers(case):
    """The same case with heads 16, 32 or 64 wide."""
    width = 1 << (case.nope + case.rotary - 1).bit_length()
    return Case(**{**vars(case), "nope": width - case.rotary})


def outcome(check):
    try:
        check()
    except AssertionError as error:
        return str(error) or "an assertion failed"
    return None


if __name__ == "__main__":
    checks = {name.removeprefix("check_"): f for name, f in globals().items() if name.startswith("check_")}
    sys.stdout.write(json.dumps({name: outcome(check) for name, check in checks.items()}))
