"""The precision pass: equal to the same policy as an interception of torch's functions, and its rules."""

import operator

import pytest
import torch
import torch.nn.functional as F
from kit.measure import assert_close
from kit.tiny.models import draw, tiny_model
from kit.tiny.passes import pass_inputs
from torch import Tensor
from torch.overrides import TorchFunctionMode

from export.lowering.precision import (
    DTYPES,
    FLOAT32_PREFIXES,
    MOVES,
    PRODUCTS,
    base_of,
    check_hardware,
    check_precision,
    in_precision,
)
from export.lowering.trace import trace
from plugins.errors import UserError
from vmla import attention
from vmla.transformer import Block, VideoMLA

pytestmark = pytest.mark.cpu

HELD = ("text_kv", "cache", "entries")
BOUNDS = {"bf16": 2e-2, "fp16": 3e-3}
"""Relative errors of one pass of a model of two layers against float32."""


class Policy(TorchFunctionMode):
    """Products in `dtype` between float32 on both sides, unless their weight is one of `wide`."""

    FUNCTIONS = {F.linear: 3, F.scaled_dot_product_attention: 3}

    def __init__(self, dtype, wide):
        super().__init__()
        self.dtype, self.wide = dtype, wide

    def __torch_function__(self, func, types, args=(), kwargs=None):
        count = self.FUNCTIONS.get(func, 0)
        if not count or any(args[1] is weight for weight in self.wide):
            return func(*args, **(kwargs or {}))
        narrow = [arg.to(self.dtype) if isinstance(arg, Tensor) else arg for arg in args[:count]]
        return func(*narrow, *args[count:], **(kwargs or {})).float()


def narrowed_operator(operator, count, dtype):
    """`operator` on its first `count` arguments in `dtype`, its results in float32."""

    def call(*args):
        with torch._C.DisableTorchFunction():  # what it does inside is its own affair
            made = operator(*(arg.to(dtype) for arg in args[:count]), *args[count:])
        return made.float() if isinstance(made, Tensor) else tuple(part.float() for part in made)

    return call


def held(inputs, dtype):
    return {name: value.to(dtype) if name in HELD else value for name, value in inputs.items()}


FORMS = [("bf16", False), ("bf16", True), ("fp16", False)]
"""Precisions, and whether the residual stream is narrow between blocks."""


@pytest.fixture(
    scope="module", params=[(*form, layout) for form in FORMS for layout in ("mla", "mha")], ids=str
)
def form(request):
    """A precision, whether the residual stream is narrow between blocks, and a layout."""
    return request.param


@pytest.fixture(scope="module")
def narrowed(form):
    """A model and its programs in a narrow precision."""
    precision, between, layout = form
    model = tiny_model(layout=layout)
    programs = {
        name: in_precision(program, precision, HELD, between_blocks=between)
        for name, program in trace(model, batch=1).items()
    }
    return model, programs, precision


def rounding(method, dtype):
    """`method`, which gets what it takes of the residual stream in `dtype`, widened."""
    return lambda self, x, *more: method(self, x.to(dtype).float(), *more)


@pytest.mark.parametrize("number", [0, 1, 6])
def test_it_rounds_where_the_policy_says_and_nowhere_else(narrowed, form, number, monkeypatch):
    model, programs, precision = narrowed
    for taker, name in ((Block, "forward"), (VideoMLA, "head")) if form[1] else ():
        monkeypatch.setattr(taker, name, rounding(getattr(taker, name), DTYPES[precision]))
    dtype = DTYPES[precision]
    inputs = held(pass_inputs(model.config, number, seed=number), dtype)
    wide = [weight for name, weight in model.named_parameters() if name.startswith(FLOAT32_PREFIXES)]
    # As in a traced graph: the operators are calls, and validity is data.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for name, count in {"expand": 4, "mla_attention": 3}.items():
        patched = narrowed_operator(getattr(attention, name), count, dtype)
        monkeypatch.setattr(attention, name, patched)
    with Policy(dtype, wide):
        velocity, entries = model(**{k: v.float() if k in HELD else v for k, v in inputs.items()})
    got = programs["step"].module()(*inputs.values())
    assert [tensor.dtype for tensor in got] == [torch.float32, dtype]
    assert_close(got[0], velocity, rtol=1e-5, atol=1e-5)
    assert_close(got[1], entries.to(dtype), rtol=1e-5, atol=1e-5)


def test_its_error_is_that_of_the_type(narrowed):
    model, programs, precision = narrowed
    dtype = DTYPES[precision]
    inputs = pass_inputs(model.config, 2, seed=5)
    made = programs["step"].module()(*held(inputs, dtype).values())
    for got, want in zip(made, model(**inputs), strict=True):
        error = (got.float() - want).norm() / want.norm()
        assert BOUNDS[precision] / 100 < error < BOUNDS[precision]


def test_the_prompt_step_is_narrowed_too(narrowed):
    model, programs, precision = narrowed
    text = draw(1, model.config.text_tokens, model.config.text_dim)
    got, want = programs["prompt"].module()(text), model.encode_text(text)
    assert got.dtype == DTYPES[precision]
    assert (got.float() - want).norm() < BOUNDS[precision] * want.norm()


def test_matrices_are_stored_narrow_and_all_else_wide(narrowed):
    _, programs, precision = narrowed
    for program in programs.values():
        for name, value in program.state_dict.items():
            matrix = value.ndim == 2 and not name.startswith(FLOAT32_PREFIXES)
            bias = name.endswith("bias") and "norm" not in name and not name.startswith(FLOAT32_PREFIXES)
            assert value.dtype == (DTYPES[precision] if matrix or bias else torch.float32), name


def test_products_read_narrow_and_nothing_else_computes_narrow(narrowed):
    _, programs, precision = narrowed
    for program in programs.values():
        weights = program.graph_signature.inputs_to_parameters
        for node in program.graph.nodes:
            if node.op != "call_function" or str(node.target) in MOVES or node.target is operator.getitem:
                continue
            kept = any(weights.get(arg.name, "").startswith(FLOAT32_PREFIXES) for arg in node.all_input_nodes)
            product = str(node.target) in PRODUCTS and not kept
            if node.target is not torch.ops.aten.to.dtype:
                expected = DTYPES[precision] if product else torch.float32
                args = node.args[: PRODUCTS[str(node.target)]] if product else node.all_input_nodes
                read = {arg.meta["val"].dtype for arg in args if isinstance(arg, torch.fx.Node)}
                assert {dtype for dtype in read if dtype.is_floating_point} <= {expected}, node


def test_nothing_is_widened_only_to_be_narrowed(narrowed):
    _, programs, _ = narrowed
    for program in programs.values():
        casts = [node for node in program.graph.nodes if node.target is torch.ops.aten.to.dtype]
        for node in casts:
            source = node.args[0]
            while str(source.target) in MOVES | {str(operator.getitem)} and len(source.all_input_nodes) == 1:
                source = source.all_input_nodes[0]
            assert source not in casts or node.args[1] == torch.float32, node


def test_the_stream_is_rounded_once_for_each_block_and_for_the_head(narrowed, form):
    model, programs, precision = narrowed
    casts = [node for node in programs["step"].graph.nodes if node.target is torch.ops.aten.to.dtype]
    # All else that is narrowed goes into products; the stream's narrow form is read to be widened alone.
    stream = [node for node in casts if node.users and all(user in casts for user in node.users)]
    assert {node.args[1] for node in stream} <= {DTYPES[precision]}
    assert len(stream) == (model.config.num_layers + 1 if form[1] else 0)
    for node in stream:  # a wide form for each reader, of which a compiler need store none
        assert all(len(wide.users) == 1 for wide in node.users)


def test_single_precision_changes_nothing():
    model = tiny_model()
    program = trace(model, batch=1)["step"]
    before = str(program.graph)
    assert str(in_precision(program, "fp32", HELD).graph) == before


def test_an_unknown_precision_is_refused_in_one_line():
    known = "no such precision: int3; there are fp32, bf16, fp16, fp8, nvfp4"
    with pytest.raises(UserError, match=known) as refusal:
        check_precision("int3")
    assert "\n" not in str(refusal.value)
    assert check_precision("fp8") == "fp8"


@pytest.mark.parametrize(
    ("precision", "refused", "taken"),
    [("fp8", ["sm_80", "sm_86"], ["sm_89", "sm_90", "sm_120"]), ("nvfp4", ["sm_90"], ["sm_100", "sm_121"])],
)
def test_gpus_that_cannot_multiply_codes_are_refused(precision, refused, taken):
    for architecture in refused:
        with pytest.raises(UserError, match=f"^{architecture} does not multiply {precision}, "):
            check_hardware(precision, architecture)
    assert [check_hardware(precision, architecture) for architecture in taken] == [None] * len(taken)
    assert check_hardware("bf16", "sm_80") is None
    assert check_hardware(precision, "no GPU") is None
    with pytest.raises(UserError, match="^sm_86 does not multiply "):
        check_hardware(precision, "sm_120,sm_86")


def test_all_else_is_narrow_on_a_gpu_alone():
    assert [base_of("fp8", gpu=gpu) for gpu in (False, True)] == ["fp32", "bf16"]
    assert base_of("fp16", gpu=True) == "fp16"
