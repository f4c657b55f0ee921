"""A feed-forward with GELU in its first product equals the plain one; compilers see one call."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from kit.measure import assert_close
from torch._decomp import get_decompositions
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from bench.harness.subject import random_model
from runtime.engines.layers.fp8_linear import in_fp8
from runtime.engines.layers.gelu_epilogue import GeluInProduct, epilogue, gelu_in_products, reference
from vmla.config import MODEL_CONFIGS
from vmla.transformer import FeedForward

pytestmark = pytest.mark.cpu

TAKEN_APART = get_decompositions([torch.ops.aten._addmm_activation, torch.ops.aten.gelu])
CHECKS = ("test_schema", "test_faketensor")
ROWS = ((7,), (2, 5), (1, 3, 4))


def drawn(rows, dtype=torch.float32, device="cpu"):
    """Random input, weight and bias of a layer of 16 inputs and 48 outputs."""
    x, weight, bias = torch.randn(*rows, 16), torch.randn(48, 16) / 4, torch.randn(48)
    return [tensor.to(device, dtype) for tensor in (x, weight, bias)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ROWS)
def test_it_is_the_plain_form_on_a_cpu(rows, dtype):
    plain = FeedForward(16, 48).to(dtype)
    x = torch.randn(*rows, 16, dtype=dtype)
    with torch.inference_mode():
        assert GeluInProduct(plain)(x).equal(plain(x))


@pytest.mark.parametrize("rows", ROWS)
def test_the_library_s_form_has_product_and_bias_of_the_plain_one(rows):
    """On a CPU its GELU is the other form, whose difference is what remains."""
    x, weight, bias = drawn(rows)
    made = epilogue(x, weight, bias)
    assert_close(made, F.gelu(F.linear(x, weight, bias)), rtol=1e-5, atol=1e-6)
    assert_close(made, reference(x, weight, bias), rtol=0, atol=1e-3)


def test_on_cuda_pytorch_defines_its_gelu_as_the_tanh_form():
    with FakeTensorMode() as mode, torch.device("cuda"):
        given = torch.empty(48), torch.empty(7, 16), torch.empty(16, 48)
    assert given[0].is_cuda
    with mode:
        traced = make_fx(
            lambda *tensors: torch._addmm_activation(*tensors, use_gelu=True),
            decomposition_table=TAKEN_APART,
        )(*given)
    names = " ".join(str(node.target) for node in traced.graph.nodes)
    assert "tanh" in names and "erf" not in names


def test_a_compiler_sees_one_call():
    graphs = []

    def kept(graph, _):
        graphs.append(graph)
        return graph.forward

    layer = GeluInProduct(FeedForward(16, 48))
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        made = torch.compile(layer, backend=kept, fullgraph=True, dynamic=False)(x)
        assert made.equal(layer(x))
    assert sum("linear_gelu" in str(node.target) for node in graphs[0].graph.nodes) == 1
    assert torch.library.opcheck(torch.ops.vmla.linear_gelu.default, drawn((2, 5)), test_utils=CHECKS)


def test_all_feed_forwards_are_replaced_but_those_in_float8():
    plain = random_model(replace(MODEL_CONFIGS["debug"], num_layers=4))
    kinds = [type(block.ffn) for block in gelu_in_products(plain).blocks]
    assert kinds == [GeluInProduct] * 4
    kinds = [type(block.ffn) for block in gelu_in_products(in_fp8(plain)).blocks]
    assert kinds == [GeluInProduct, FeedForward, FeedForward, GeluInProduct]
    assert all(type(block.ffn) is FeedForward for block in plain.blocks)
