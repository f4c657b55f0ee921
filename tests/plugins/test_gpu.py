"""What only a GPU can show. One command: python -m pytest tests/plugins -m gpu"""

import pytest
import torch
from kit.measure import assert_relative
from kit.stand_ins import cuda_driver
from kit.tiny.windows import Case, head_window, latent_query, latent_window, projections, scales_of

from plugins import expand, mla_attention, mla_attention_absorbed, sdpa
from plugins.aot import compile as aot
from plugins.aot.objects import launch
from plugins.aot.tensorrt_plugin import HEADS, LATENT
from plugins.aot.variants import variants
from plugins.triton import tiles

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

PUBLISHED = {"content": 192, "rotary": 32, "nope": 96, "values": 128}
SMALL = Case(batch=2, heads=3, cached=333, own=150, empty=(0, *range(64, 200)), **PUBLISHED)
FULL = Case(batch=1, heads=12, cached=6240, own=4680, empty=tuple(range(1560, 3120)), **PUBLISHED)
VALID = Case(batch=2, heads=3, cached=333, own=150, empty=(), **PUBLISHED)
CASES = {"small": SMALL, "published": FULL, "none empty": VALID}
LIMITS = {torch.bfloat16: 1e-2, torch.float16: 2e-3}
FLOAT8, FLOAT8_LIMIT = torch.float8_e4m3fn, 4e-2
KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": FLOAT8}


def heads(case, dtype):
    """query, keys, values, valid and scales; float8 as it would be quantised, one scale to a head."""
    if dtype != FLOAT8:
        return *head_window(case, seed=1, dtype=dtype, device="cuda"), None
    *tensors, valid = head_window(case, seed=1, device="cuda")
    scales = scales_of(3, case.heads, spread=0.01, device="cuda")
    narrow = [(x / s[:, None, None]).to(FLOAT8) for x, s in zip(tensors, scales, strict=True)]
    return *narrow, valid, scales


def latents(case, dtype):
    """query, cached, own, cos, sin, valid and scales."""
    wide = torch.float32 if dtype == FLOAT8 else dtype
    query = latent_query(case, seed=2, dtype=wide, device="cuda")
    cached, own, *tables = latent_window(case, seed=3, dtype=wide, device="cuda")
    if dtype != FLOAT8:
        return query, cached, own, *tables, None
    scales = scales_of(2, case.heads, spread=0.01, device="cuda")
    query = (query / scales[0][:, None, None]).to(FLOAT8)
    return query, (cached / 0.02).to(FLOAT8), (own / 0.02).to(FLOAT8), *tables, scales


def expected_of(operator, inputs):
    *tensors, scales = inputs
    if operator == "mla_attention":
        return mla_attention(*tensors, scales=scales, backend="reference")
    return mla_attention_absorbed(*tensors, SCALE, scales=scales, backend="reference")


SCALE = 128**-0.5


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [*LIMITS, FLOAT8])
@pytest.mark.parametrize("backend", ["sdpa", "triton", "auto"])
def test_attention(backend, dtype, case):
    *tensors, scales = inputs = heads(case, dtype)
    out = mla_attention(*tensors, scales=scales, backend=backend)
    assert_relative(out, expected_of("mla_attention", inputs), LIMITS.get(dtype, FLOAT8_LIMIT))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [*LIMITS, FLOAT8])
@pytest.mark.parametrize("backend", ["sdpa", "triton", "auto"])
def test_absorbed(backend, dtype, case):
    *tensors, scales = inputs = latents(case, dtype)
    out = mla_attention_absorbed(*tensors, SCALE, scales=scales, backend=backend)
    assert_relative(out, expected_of("mla_attention_absorbed", inputs), LIMITS.get(dtype, FLOAT8_LIMIT))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", LIMITS)
def test_expand(dtype, case):
    cached, own, *tables = latent_window(case, seed=4, dtype=dtype, device="cuda")
    inputs = (cached, own, *projections(case, seed=5, dtype=dtype, device="cuda"), *tables, case.heads)
    wanted = expand(*inputs, backend="reference")
    for out, expected in zip(expand(*inputs, backend="triton"), wanted, strict=True):
        assert_relative(out, expected, LIMITS[dtype])


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_splits_of_the_keys_add_up(splits):
    from plugins.triton import launch as kernels

    inputs = heads(SMALL, torch.bfloat16)
    out = kernels.attention(*inputs, splits=splits)
    assert_relative(out, expected_of("mla_attention", inputs), 1e-2)


def test_cudnn_is_taken_on_hopper_and_later():
    if torch.cuda.get_device_capability() < sdpa.HOPPER:
        pytest.skip("cuDNN is asked for from Hopper on")
    query, keys, values, valid, _ = heads(FULL, torch.bfloat16)
    assert sdpa.taken(query, keys, values) == "cudnn"
    assert sdpa.taken(query, keys, values, valid[None, None, None]) in ("cudnn", "efficient")


def test_the_kernels_run_compiled_and_in_a_graph():
    *tensors, _ = heads(SMALL, torch.bfloat16)
    call = lambda *xs: mla_attention(*xs, backend="triton")  # noqa: E731
    expected = call(*tensors)
    assert_relative(torch.compile(call, fullgraph=True)(*tensors), expected, 1e-6)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(*tensors)
    graph.replay()
    assert_relative(out, expected, 1e-6)


def built(capability):
    return list(variants(tiles.family(capability)))


def here():
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    return 10 * major + minor


@pytest.mark.parametrize("variant", built(here()), ids=lambda variant: variant.name)
@pytest.mark.parametrize("form", ["ptx", "cubin"])
def test_the_driver_launches_what_a_plugin_hands_over(form, variant):
    """The very code, grid and scalars: those of the record that the TensorRT plugin reads."""
    kernel, ptx, cubin = aot.compile_variant(variant)
    tensors, expected = prepared(variant)
    sizes = {"B": SMALL.batch, "N": SMALL.heads, "S": SMALL.own, "K": SMALL.keys}
    sizes |= {"T": SMALL.cached, "O": SMALL.own}
    code = ptx.encode() if form == "ptx" else cubin
    cuda_driver.launch(code, kernel, *launch(kernel, sizes), tensors, raise_limit=not kernel.compact)
    for name, want in expected.items():
        assert_relative(tensors[name], want, LIMITS.get(KINDS[variant.dtype], FLOAT8_LIMIT))


def prepared(variant):
    """Tensors for every pointer of a kernel, outputs full of poison, and what they should become."""
    dtype = KINDS[variant.dtype]
    if variant.operator == "expand":
        cached, own, cos, sin, valid = latent_window(SMALL, seed=4, dtype=dtype, device="cuda")
        up_key, up_value = projections(SMALL, seed=5, dtype=dtype, device="cuda")
        tensors = {"cached": cached, "own": own, "up_key": up_key, "up_value": up_value}
        tensors |= {"cos": cos, "sin": sin, "valid": valid}
        wanted = expand(*tensors.values(), SMALL.heads, backend="reference")
        expected = dict(zip(("keys", "values"), wanted, strict=True))
    else:
        attention = variant.operator == "mla_attention"
        inputs = heads(SMALL, dtype) if attention else latents(SMALL, dtype)
        names = HEADS if attention else LATENT
        tensors = dict(zip((*names, "scales"), inputs, strict=True))
        if variant.dtype != "fp8":
            del tensors["scales"]
        expected = {"out": expected_of(variant.operator, inputs)}
    outputs = {name: torch.full_like(want, float("nan"), memory_format=torch.contiguous_format)
               for name, want in expected.items()}  # fmt: skip
    return tensors | outputs, expected
