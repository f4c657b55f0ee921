"""Attention in float8: its reference against exact attention, cuDNN's form over a stand-in for cuDNN."""

import ctypes
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from plugins.fp8 import cudnn_attention
from plugins.fp8.attention import fp8_attention, quantize_tensor, reference_attend
from plugins.fp8.attention_choice import Check, checked, is_faster, random_inputs
from plugins.fp8.cudnn_attention import AttentionSizes, Plans, unfit

pytestmark = pytest.mark.cpu

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FLOAT8 = torch.float8_e4m3fn
SIZES = AttentionSizes(batch=2, heads=3, queries=24, keys=80, width=32, deep=16)
HEAVY = AttentionSizes(batch=1, heads=2, queries=16, keys=2048, width=128, deep=128)


def drawn(sizes=SIZES, dtype=torch.float32):
    return random_inputs(sizes, dtype=dtype, device=CPU)


def exact(query, keys, values):
    query, keys, values = (x.double() for x in (query, keys, values))
    return (query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1) @ values


def error(got, wanted):
    return float((got.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("sizes", [SIZES, HEAVY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("magnitude", [1e-3, 1.0, 1e3])
def test_the_reference_errs_as_much_as_three_bits_of_mantissa_do(magnitude, dtype, sizes):
    query, keys, values = drawn(sizes, dtype)
    values = values * magnitude
    got = fp8_attention(query, keys, values, reference_attend)
    assert (got.shape, got.dtype) == ((sizes.batch, sizes.heads, sizes.queries, sizes.deep), dtype)
    assert 0.02 < error(got, exact(query, keys, values)) < 0.12


def test_of_codes_only_weights_and_output_are_rounded():
    query, keys, values = ((x * 8).round().clamp(-15, 15) / 8 for x in drawn())  # float8 holds them
    for x in (query, keys, values):
        x[0, 0, 0, 0] = 3.5  # 448 / 3.5 is a power of two, so that dividing by the scale is exact
        x.clamp_(-3.5, 3.5)
    assert (
        0.01 < error(fp8_attention(query, keys, values, reference_attend), exact(query, keys, values)) < 0.05
    )


def test_the_layout_in_memory_does_not_matter():
    inputs = drawn()
    strided = [torch.cat([x, x], dim=-1)[..., : x.shape[-1]] for x in inputs]
    outs = [fp8_attention(*each, reference_attend) for each in (inputs, strided)]
    assert torch.equal(*outs)


def test_values_that_are_all_alike_come_back_although_weights_are_rounded():
    query, keys, _ = drawn()
    values = torch.full((2, 3, 80, 16), -7.0)
    assert torch.equal(fp8_attention(query, keys, values, reference_attend), torch.full((2, 3, 24, 16), -7.0))


def test_a_tensor_has_one_scale_and_what_is_not_finite_shows():
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)).transpose(0, 2)
    codes, scale = quantize_tensor(x)
    assert (codes.dtype, scale.shape, codes.is_contiguous()) == (FLOAT8, (1,), True)
    assert codes.float().abs().max() == 448
    assert ((codes.float() * scale - x).abs() <= x.abs() / 16 + scale / 512).all()
    assert (quantize_tensor(torch.zeros(3))[0].float() == 0).all()
    for bad in (float("nan"), float("inf")):
        assert quantize_tensor(torch.tensor([1.0, bad]))[0].float().isnan().any()


WRONG = {
    "heads in another order": lambda q, k, v, *s: reference_attend(q.flip(2).contiguous(), k, v, *s),
    "keys in another order": lambda q, k, v, *s: reference_attend(q, k.flip(1).contiguous(), v, *s),
    "a scale of queries left out": lambda q, k, v, a, *s: reference_attend(q, k, v, a / a, *s),
    "an output of another scale": lambda q, k, v, a, b, c, o: reference_attend(q, k, v, a, b, c, o / 2),
    "one query of nothing but NaN": lambda q, *rest: spoilt(reference_attend(q, *rest)),
}


def spoilt(codes):
    codes.view(torch.uint8)[:, -1] = 0x7F  # NaN
    return codes


def test_the_check_takes_the_reference_itself_and_other_roundings():
    def relative_to_another_maximum(q, k, v, a, b, c, o):
        queries, keys = (x.float().transpose(1, 2) * s for x, s in ((q, a), (k, b)))
        weights = (queries @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        rounded = (weights * 448).to(FLOAT8).float() / 448
        return ((rounded @ v.float().transpose(1, 2)) * (c * o)).to(FLOAT8).transpose(1, 2).contiguous()

    for attend in (reference_attend, relative_to_another_maximum):
        assert checked(*drawn(HEAVY, torch.bfloat16), attend).fault() is None


@pytest.mark.parametrize("attend", WRONG.values(), ids=WRONG)
def test_the_check_finds(attend):
    assert checked(*drawn(HEAVY, torch.bfloat16), attend).fault() is not None


def test_a_form_that_resembles_its_reference_but_errs_more_is_refused():
    assert Check(0.05, 0.06, 0.06).fault() is None
    assert "its error is 0.080, and that of its reference 0.060" in Check(0.05, 0.08, 0.06).fault()
    assert "it is nan away" in Check(float("nan"), 0.0, 0.06).fault()


@pytest.mark.parametrize(("took", "faster"), [(0.5, True), (0.99, False), (1.5, False)])
def test_only_a_clear_gain_counts(took, faster):
    def timer(call):
        return call()

    assert is_faster(lambda *_: took, lambda *_: 1.0, drawn(), timer) is faster


def test_what_cannot_be_tried_is_said(monkeypatch):
    monkeypatch.setattr(cudnn_attention, "find_spec", lambda name: None)
    assert 'pip install "videomla[cudnn]"' in unfit(128, 128, GPU)
    monkeypatch.setattr(cudnn_attention, "find_spec", lambda name: object())
    assert "runs on a GPU" in unfit(128, 128, CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert "sm_90 and newer" in unfit(128, 128, GPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert "are 40 and 128" in unfit(40, 128, GPU)
    assert unfit(128, 128, GPU) is None


class Described:
    """A tensor of the stand-in's graphs."""

    def __init__(self, name, dim=None, stride=None):
        self.name, self.dim, self.stride = name, dim, stride

    def set_output(self, _):
        return self

    def set_dim(self, dim):
        self.dim = dim
        return self

    def set_stride(self, stride):
        self.stride = stride
        return self

    def set_data_type(self, _):
        return self

    def at(self, address):
        """The bytes or floats at an address, as this tensor describes them."""
        kind, size = (FLOAT8, 1) if self.dim != [1] * 4 else (torch.float32, 4)
        span = 1 + sum((n - 1) * step for n, step in zip(self.dim, self.stride, strict=True))
        memory = (ctypes.c_uint8 * (span * size)).from_address(address)
        flat = torch.frombuffer(memory, dtype=torch.uint8).view(kind)
        return flat.as_strided(self.dim, self.stride)


class Graph:
    """A stand-in for cuDNN's graphs that computes from the addresses that it is given, on the CPU."""

    made: list["Graph"]

    def __init__(self, **given):
        self.given, self.streams = given, []
        self.made.append(self)

    def tensor(self, *, dim, stride, data_type, name):
        return Described(name, dim, stride)

    def sdpa_fp8(self, *inputs, generate_stats, attn_scale, name):
        assert [x.name for x in inputs] == ["query", "keys", "values", "descale_q", "descale_k", "descale_v",
                                            "descale_s", "scale_s", "scale_o"]  # fmt: skip
        assert not generate_stats and attn_scale == inputs[0].dim[-1] ** -0.5
        self.inputs, self.outputs = inputs, [Described("out"), None, Described("s"), Described("o")]
        return self.outputs

    def build(self, heuristics):
        if self.inputs[0].dim[-1] == 64:
            raise sys.modules["cudnn"].cudnnGraphNotSupportedError("no engine")

    def get_workspace_size(self):
        return 256

    def execute(self, bound, workspace, handle):
        assert len(bound) == 12 and workspace and handle is self.given["handle"]
        query, keys, values, a, b, c, inverse, weight, o = (x.at(bound[x]) for x in self.inputs)
        assert (float(inverse), float(weight)) == (pytest.approx(1 / 448), 448)
        made = reference_attend(
            *(x.transpose(1, 2) for x in (query, keys, values)), *(s.view(1) for s in (a, b, c, o))
        )
        self.outputs[0].at(bound[self.outputs[0]]).copy_(made.transpose(1, 2))


@pytest.fixture
def library(monkeypatch):
    """A stand-in for cuDNN's frontend in a process without CUDA; returns the module."""
    module = ModuleType("cudnn")
    module.data_type = SimpleNamespace(FP8_E4M3="e4m3", FLOAT="float")
    module.heur_mode = SimpleNamespace(A="a", FALLBACK="fallback")
    module.cudnnGraphNotSupportedError = type("cudnnGraphNotSupportedError", (Exception,), {})
    module.handles, module.streams = [], []
    module.create_handle = lambda: module.handles.append(object()) or module.handles[-1]
    module.set_stream = lambda handle, stream: module.streams.append(stream)
    module.pygraph = type("pygraph", (Graph,), {"made": []})
    monkeypatch.setitem(sys.modules, "cudnn", module)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))
    return module


def through(plans):
    def attend(*inputs):
        out = cudnn_attention._output(*inputs)
        plans.attend(inputs[:3], inputs[3:], out)
        return out

    return attend


def test_a_plan_is_bound_to_what_the_reference_takes_and_built_once_for_a_size(library):
    plans = Plans()
    attend = through(plans)
    for sizes in (SIZES, SIZES, SIZES._replace(batch=1), SIZES):
        inputs = drawn(sizes)
        assert torch.equal(fp8_attention(*inputs, attend), fp8_attention(*inputs, reference_attend))
    assert (len(library.pygraph.made), len(library.handles), library.streams) == (2, 1, [7] * 4)
    assert checked(*drawn(), attend).fault() is None


def test_what_cudnn_refuses_is_one_kind_of_error(library):
    with pytest.raises(RuntimeError, match="no engine"):
        fp8_attention(*drawn(SIZES._replace(width=64)), through(Plans()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("sizes", [SIZES, AttentionSizes(1, 12, 4680, 9360, 128, 128)])
def test_on_a_gpu_cudnn_is_the_reference_alone_compiled_and_in_a_graph(sizes):
    if (reason := unfit(sizes.width, sizes.deep, GPU)) is not None:
        pytest.skip(reason)
    inputs = random_inputs(sizes, dtype=torch.bfloat16, device=GPU)
    assert checked(*inputs, cudnn_attention.attend).fault() is None

    def call(*inputs):
        return fp8_attention(*inputs, cudnn_attention.attend)

    expected = call(*inputs)
    compiled = torch.compile(call, fullgraph=True)(*inputs)
    assert (compiled - expected).norm() / expected.norm() < 1e-2  # a quotient may round to the next code
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(*inputs)
    graph.replay()
    assert torch.equal(out, expected)
