"""float8 by rows: codes against their definition, PyTorch's product against the plain one."""

import pytest
import torch

from plugins.fp8.product import FAST_ACCUMULATION, reference_product, scaled_product
from plugins.fp8.rows import LARGEST, quantize_rows

pytestmark = pytest.mark.cpu


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_are_the_nearest_of_all_that_there_are(dtype):
    x = (drawn(7, 48) * torch.logspace(-6, 6, 7)[:, None]).to(dtype)
    codes, scales = quantize_rows(x)
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    every = every[every.isfinite()]
    distance = (x.float() / scales)[..., None].sub(every).abs().min(dim=-1).values
    got = (x.float() / scales - codes.float()).abs()
    assert torch.allclose(got, distance, rtol=0, atol=0)
    assert (codes.float().abs().amax(dim=1) == LARGEST).all()


def test_zeros_stay_zeros_and_what_is_not_finite_shows_in_its_own_row_alone():
    x = drawn(4, 32)
    x[0], x[1, 3], x[2, 5] = 0, float("nan"), float("inf")
    codes, scales = quantize_rows(x)
    values = codes.float() * scales
    assert (values[0] == 0).all()
    assert values[1].isnan().any() and values[2].isnan().any()
    assert values[3].isfinite().all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_of_pytorch_is_the_reference(dtype, fast, bias):
    (codes, scales), (weight, weight_scales) = (
        quantize_rows(drawn(48, 64)),
        quantize_rows(drawn(32, 64, seed=1)),
    )
    added = drawn(32, seed=2).to(dtype) if bias else None
    factors = codes, scales, weight, weight_scales.flatten(), added
    got, wanted = scaled_product(*factors, dtype=dtype, fast=fast), reference_product(*factors, dtype=dtype)
    assert got.dtype == wanted.dtype == dtype
    tolerance = 2**-7 if dtype == torch.bfloat16 else 1e-5
    assert (got.float() - wanted.float()).abs().max() <= tolerance * wanted.float().abs().max()


def test_rounding_costs_what_three_bits_of_mantissa_cost():
    x, w = drawn(64, 256), drawn(96, 256, seed=1)
    (codes, scales), (weight, weight_scales) = quantize_rows(x), quantize_rows(w)
    got, wanted = (
        reference_product(codes, scales, weight, weight_scales.flatten(), dtype=torch.float32),
        x @ w.t(),
    )
    assert 0.02 < (got - wanted).norm() / wanted.norm() < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fast", [True, False])
def test_on_a_gpu_the_product_is_the_reference_too(fast):
    (codes, scales), (weight, weight_scales) = (
        quantize_rows(drawn(128, 1536)),
        quantize_rows(drawn(256, 1536, seed=1)),
    )
    factors = [each.cuda() for each in (codes, scales, weight, weight_scales.flatten())]
    got, wanted = scaled_product(*factors, fast=fast), reference_product(*factors)
    assert (got.float() - wanted.float()).norm() / wanted.float().norm() < 1e-2


def test_one_setting_says_how_a_gpu_adds_up_in_products_and_benchmarks_alike(monkeypatch):
    from bench.harness import peaks
    from export.lowering.fp8_matmul import scaled_linear

    seen = []

    def watched(*args, **kwargs):
        seen.append(kwargs["use_fast_accum"])
        return torch.zeros(args[0].shape[0], args[1].shape[1])

    class Overload:
        default = staticmethod(watched)

    monkeypatch.setattr(torch.ops.aten, "_scaled_mm", Overload, raising=False)
    codes, weight = quantize_rows(drawn(16, 32))[0], quantize_rows(drawn(16, 32))[0]
    scaled_linear(codes, 1.0, weight, torch.ones(16), None)
    peaks.scaled_product(drawn(16, 32), drawn(16, 32))()
    assert seen == [FAST_ACCUMULATION] * 2
