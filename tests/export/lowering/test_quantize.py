"""Quantised layers: codes by an independent formula, programs by the same policy outside the graph."""

import pytest
import torch
import torch.nn.functional as F
from kit.measure import assert_close, assert_relative
from kit.tiny.models import draw, randomise
from kit.tiny.passes import pass_inputs
from torch import nn
from torch.overrides import TorchFunctionMode

from export.backends import aoti
from export.lowering import nvfp4
from export.lowering.calibration import observed
from export.lowering.exclusions import reason_to_exclude
from export.lowering.fp8 import dequantize_rows, input_scale, quantize, row_scales
from export.lowering.fp8_matmul import SCALED, scaled, scaled_linear, with_inputs
from export.lowering.precision import in_precision
from export.lowering.quantized_layers import HEADROOM, linear_layers, quantized
from export.lowering.trace import fake_model, trace_step
from vmla.config import named_config
from vmla.transformer import VideoMLA

pytestmark = pytest.mark.cpu

HELD = ("text_kv", "cache", "entries")

E4M3 = [m / 8 * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7) for e in range(16) for m in range(8)]
E4M3.pop()
"""Every magnitude by its code: exponents are biased by 7, the last code of all is NaN."""
E2M1 = [m / 2 if e == 0 else (1 + m / 2) * 2.0 ** (e - 1) for e in range(4) for m in range(2)]


def nearest(x, magnitudes):
    """`x` in float64 to the nearest magnitude, to the even code between two, to the last beyond it."""
    table, size = torch.tensor(magnitudes, dtype=torch.float64), x.double().abs()
    above = torch.searchsorted(table, size).clamp(1, len(table) - 1)
    low, high = table[above - 1], table[above]
    up = (2 * size > low + high) | ((2 * size == low + high) & (above % 2 == 0))
    return torch.where(up, high, low).copysign(x.double())


def power_above(ratio):
    """The smallest power of two that is no less than each of `ratio`."""
    scale = torch.full_like(ratio, 2.0**-60, dtype=torch.float64)
    while (scale < ratio).any():
        scale = torch.where(scale < ratio, 2 * scale, scale)
    return scale


def fp8_rows(weight):
    """What an fp8 weight stands for, in float64."""
    scales = power_above(weight.double().abs().amax(1, keepdim=True) / 448)
    return nearest(weight / scales, E4M3) * scales


def fp8_inputs(x, largest):
    scale = power_above(torch.tensor(HEADROOM * largest / 448, dtype=torch.float64))
    return nearest(x / scale, E4M3) * scale


def hard_numbers():
    """Random ones of every size, all magnitudes, all ties between them, and what lies beyond 448."""
    table = torch.tensor(E4M3)
    spread = draw(4000, seed=1) * torch.exp2(4 * draw(4000, seed=2))
    return torch.cat([spread, table, -table, (table[1:] + table[:-1]) / 2, torch.tensor([449.0, -1e9])])


class Policy(TorchFunctionMode):
    """Quantises what the linear layers with the given weights read."""

    def __init__(self, layers, largest):
        super().__init__()
        self.known = [(layer.weight, largest[name]) for name, layer in layers.items()]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        for weight, largest in self.known if func is F.linear else ():
            if args[1] is weight:
                args = (fp8_inputs(args[0], largest).float(), fp8_rows(weight).float(), *args[2:])
                break
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model():
    """The debug model, whose widths tensor cores would take."""
    return randomise(VideoMLA(named_config("debug")))


@pytest.fixture(scope="module")
def chosen(model):
    """The layers that are not excluded, and their largest inputs in two passes."""
    with observed(model) as seen:
        for number in (0, 3):
            model(**pass_inputs(model.config, number, seed=number))
    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    shapes = {name: part.weight.shape for name, part in layers.items()}
    return {
        name: float(value)
        for name, (_, value) in seen.items()
        if name in layers and reason_to_exclude(name, shapes[name], model.config.num_layers) is None
    }


@pytest.fixture(scope="module")
def program(model, chosen):
    """The step in fp8 with everything else in float32."""
    return quantized(trace_step(model, batch=1), chosen, "fp8")


def test_fp8_codes_are_the_nearest_and_saturate():
    x = hard_numbers()
    for scale in (1.0, 0.25, 8.0):
        assert torch.equal(quantize(scale * x, scale).double(), nearest(x, E4M3))
    assert quantize(torch.tensor([torch.inf, -torch.inf]), 1.0).tolist() == [448, -448]


def test_a_scale_is_the_smallest_power_of_two_that_reaches():
    exact = 448 * torch.exp2(torch.arange(-8.0, 9))
    sizes = torch.cat([draw(500, seed=3).abs(), exact, torch.tensor([1e-12])])
    wanted = power_above(sizes.double() / 448)
    assert [input_scale(size) for size in sizes.tolist()] == wanted.tolist()
    assert torch.equal(row_scales(-sizes[:, None]).double(), wanted)
    assert input_scale(0.0) == 1
    assert row_scales(torch.zeros(1, 16)).tolist() == [1]


def test_each_row_of_a_weight_has_a_scale_of_its_own():
    weight = draw(24, 32, seed=4) * torch.exp2(torch.arange(-12.0, 12))[:, None]
    scales = row_scales(weight)
    made = dequantize_rows(quantize(weight / scales[:, None], 1.0), scales)
    assert len(set(scales.tolist())) > 20
    assert torch.equal(made.double(), fp8_rows(weight))
    assert_relative(made, weight, 2**-4)


def test_a_program_quantises_where_the_policy_says_and_nowhere_else(model, chosen, program, monkeypatch):
    assert len(chosen) == 14
    inputs = pass_inputs(model.config, 2, seed=9)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # operators, as in a traced graph
    with Policy({name: model.get_submodule(name) for name in chosen}, chosen):
        wanted = model(**inputs)
    for got, want, exact in zip(program.module()(*inputs.values()), wanted, model(**inputs), strict=True):
        assert_close(got, want, rtol=1e-6, atol=1e-6)
        assert 0.003 < (got - exact).norm() / exact.norm() < 0.1


def test_codes_take_the_place_of_chosen_weights_and_all_else_stays(model, chosen, program):
    for name, value in program.state_dict.items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight_scale":
            assert layer in chosen
        elif kind == "weight" and layer in chosen:
            scales = program.state_dict[f"{layer}.weight_scale"]
            assert value.dtype == torch.float8_e4m3fn
            assert torch.equal(dequantize_rows(value, scales).double(), fp8_rows(model.state_dict()[name]))
        else:
            assert torch.equal(value, model.state_dict()[name]), name
    left = {layer.name for layer in linear_layers(program)}
    assert "blocks.0.attn1.rotary_k" in left
    assert left | chosen.keys() == {layer.name for layer in linear_layers(trace_step(model, batch=1))}


def test_what_reads_one_input_shares_its_codes(program):
    codes = [node for node in program.graph.nodes if "vmla.quantize" in str(node.target)]
    assert len({(node.args[0], node.args[1]) for node in codes}) == len(codes)


def test_in_bfloat16_codes_become_bfloat16_at_once(model, chosen):
    made = in_precision(quantized(trace_step(model, batch=1), chosen, "fp8"), "bf16", HELD)
    quantising = [node for node in made.graph.nodes if "quantize" in str(node.target)]
    assert {str(node.target): node.meta["val"].dtype for node in quantising} == {
        "vmla.quantize.default": torch.float8_e4m3fn,
        "vmla.dequantize.default": torch.bfloat16,
        "vmla.dequantize_rows.default": torch.bfloat16,
    }
    for node in made.graph.nodes:
        if node.target is torch.ops.aten.to.dtype:
            assert "dequantize" not in str(node.args[0].target)
        if "vmla.quantize" in str(node.target):
            assert node.args[0].meta["val"].dtype == torch.float32
    assert made.state_dict["blocks.0.ffn.up.weight_scale"].dtype == torch.bfloat16
    inputs = pass_inputs(model.config, 2, seed=9)
    held = {name: value.bfloat16() if name in HELD else value for name, value in inputs.items()}
    for got, want in zip(made.module()(*held.values()), model(**inputs), strict=True):
        assert (got.float() - want).norm() < 0.1 * want.norm()


@pytest.mark.parametrize("bias", [None, draw(48, seed=12)])
def test_a_product_of_codes_is_that_of_what_they_stand_for(bias):
    x, weight = draw(2, 5, 32, seed=10), draw(48, 32, seed=11) * torch.exp2(draw(48, 1, seed=13))
    scales = row_scales(weight)
    codes = quantize(x, 2.0**-6), quantize(weight / scales[:, None], 1.0)
    narrow = None if bias is None else bias.bfloat16()
    made = scaled_linear(codes[0], torch.ones(10, 1), codes[1], with_inputs(scales, 2.0**-6), narrow)
    exact = nearest(x * 64, E4M3) / 64 @ fp8_rows(weight).T + (0 if bias is None else bias)
    assert made.dtype == torch.float32
    assert_relative(made, exact, 2**-7)  # it is rounded to bfloat16, and so is the bias


def test_a_program_for_gpus_multiplies_codes(model, chosen):
    made = scaled(quantized(trace_step(model, batch=1), chosen, "fp8"))
    assert sum(node.target is SCALED for node in made.graph.nodes) == len(chosen)
    assert not any("dequantize" in str(node.target) for node in made.graph.nodes)
    made = in_precision(made, "bf16", HELD)
    inputs = pass_inputs(model.config, 2, seed=9)
    held = {name: value.bfloat16() if name in HELD else value for name, value in inputs.items()}
    for got, want in zip(made.module()(*held.values()), model(**inputs), strict=True):
        assert (got.float() - want).norm() < 0.1 * want.norm()


def test_a_model_without_numbers_is_quantised_too(chosen, program):
    made = quantized(trace_step(fake_model(named_config("debug")), batch=1), chosen, "fp8")
    assert str(made.graph) == str(program.graph)
    kinds = {name: (value.shape, value.dtype) for name, value in made.state_dict.items()}
    assert kinds == {name: (value.shape, value.dtype) for name, value in program.state_dict.items()}


class FeedForward(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(32, 48), torch.nn.Linear(48, 16)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


@pytest.fixture(scope="module")
def small():
    """A program of two layers in fp8, and an input of it."""
    layers, x = randomise(FeedForward()), draw(1, 7, 32, seed=5)
    return quantized(torch.export.export(layers, (x,)), {"up": 2.0, "down": 3.0}, "fp8"), x


def test_it_compiles_to_the_same_numbers(small, tmp_path):
    program, x = small
    wanted = program.module()(x)
    aoti.package(program, tmp_path / "small.pt2", aoti.OPTIONS["cpu"])
    made = torch._inductor.aoti_load_package(str(tmp_path / "small.pt2"))(x)
    assert wanted.abs().max() > 0.1
    assert_close(made, wanted, rtol=1e-5, atol=1e-5)


def test_nvfp4_rounds_to_the_nearest_in_each_block():
    x = draw(6, 64, seed=6) * torch.exp2(4 * draw(6, 1, seed=7))
    x[2, 16:32] = 0
    x[3, :16] *= 1e-9  # below what a block scale reaches
    scale = nvfp4.tensor_scale(float(x.abs().max()))
    assert scale == power_above(x.double().abs().max() / 6 / 448)
    blocks = x.double().unflatten(-1, (-1, 16))
    scales = nearest(blocks.abs().amax(-1, keepdim=True) / 6 / scale, E4M3) * scale
    wanted = torch.where(scales > 0, nearest(blocks / scales, E2M1) * scales, 0.0).flatten(-2)
    made = nvfp4.round_to(x, scale)
    assert torch.equal(made.double(), wanted)
    codes, block_scales = nvfp4.quantize(x, scale)
    assert (codes.shape, block_scales.shape) == ((6, 32), (6, 4))
    assert torch.equal(nvfp4.dequantize(codes, block_scales, scale), made)
    assert 0.03 < (made - x).norm() / x.norm() < 0.2


def test_ties_of_nvfp4_go_to_the_even_code():
    middles = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    block = torch.cat([middles, -middles, torch.tensor([6.0, 0.0])])
    made = nvfp4.round_to(block, 2.0**-8)  # the block scale is 1 / 2^-8 of it: codes are the numbers
    assert made.tolist()[:7] == [0, 1, 1, 2, 2, 4, 4]
    assert made.tolist()[7:14] == [0, -1, -1, -2, -2, -4, -4]


def test_a_program_in_nvfp4_rounds_its_weights_by_blocks(model, chosen):
    made = quantized(trace_step(model, batch=1), chosen, "nvfp4")
    weight = model.blocks[0].ffn.up.weight
    codes, scales = (made.state_dict[f"blocks.0.ffn.up.{name}"] for name in ("weight", "weight_scale"))
    scale = nvfp4.tensor_scale(float(weight.abs().max()))
    assert codes.dtype == torch.float4_e2m1fn_x2
    assert torch.equal(nvfp4.dequantize(codes, scales, scale), nvfp4.round_to(weight, scale))
    inputs = pass_inputs(model.config, 2, seed=9)
    for got, want in zip(made.module()(*inputs.values()), model(**inputs), strict=True):
        assert 0.02 < (got - want).norm() / want.norm() < 0.4
    assert not any("vmla.quantize" in str(node.target) for node in made.graph.nodes)
