"""Arms of the GPU benchmark: each lacks exactly one feature, and computes the same."""

from collections import Counter
from dataclasses import fields

import pytest
import torch
from kit.measure import assert_close
from kit.tiny.models import tiny_model
from kit.tiny.passes import pass_inputs
from torch.utils._python_dispatch import TorchDispatchMode

from bench.gpu.arms.attention import HeadsFirst, SeparateExpansion, SeparateProjections
from bench.gpu.arms.items import ITEMS, NOISE, Masked
from bench.gpu.fp8 import ARMS, DRIFTING
from bench.harness.subject import RandomText, random_model
from runtime.engines.base import EagerEngine
from runtime.engines.optimizations import ALL, Optimizations, Place, optimized
from vmla.attention import Window
from vmla.config import named_config
from vmla.fused_attention import FusedLatentAttention, fused

pytestmark = pytest.mark.cpu

FORMS = (SeparateExpansion, SeparateProjections, HeadsFirst)
FULL = 3
"""A chunk of the tiny models whose window is full."""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", range(5))
def test_a_form_that_lacks_one_feature_equals_the_plain_model_at_every_fill_level(form, number):
    model = tiny_model()
    inputs = pass_inputs(model.config, number, batch=2, seed=number)
    full = bool((inputs["slot_index"] >= 0).all())
    again = fused(model, form=form)
    for made, wanted in zip(again(**inputs, full=full), model(**inputs, full=full), strict=True):
        assert_close(made, wanted, rtol=1e-4, atol=1e-5)
    assert_close(again.entries(**inputs, full=full), model.entries(**inputs, full=full), rtol=1e-4, atol=1e-5)


class Products(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def products(self):
        return sum(self.seen[f"aten.{name}"] for name in ("linear", "mm", "addmm", "bmm"))


def counted(attention):
    model = fused(tiny_model(num_layers=1), form=attention)
    with torch.inference_mode(), Products() as found:
        model(**pass_inputs(model.config, FULL), full=True)
    return found


def test_each_form_lacks_what_its_name_says_and_no_more():
    joined, expansion, projections, heads = map(counted, (FusedLatentAttention, *FORMS))
    assert projections.products == joined.products + 3  # two more lead down, one more up
    assert heads.products == joined.products
    assert expansion.seen["vmla.expand"] == 1 or expansion.products == joined.products + 1


@pytest.mark.parametrize(("form", "copied"), [(HeadsFirst, True), (FusedLatentAttention, False)])
def test_attention_reads_contiguous_memory_only_where_heads_come_first(monkeypatch, form, copied):
    seen = []

    def attend(self, query, keys, values):
        seen.extend(part.is_contiguous() for part in (query, keys, values))
        return query

    monkeypatch.setattr(Window, "attend", attend)
    model = fused(tiny_model(num_layers=1), form=form)
    model(**pass_inputs(model.config, FULL), full=True)
    assert seen == [copied] * 3


def engine(kind=EagerEngine, **settings):
    model = random_model(named_config("debug"))
    return kind(model, RandomText(model.config), device=torch.device("cpu"), dtype=torch.float32, **settings)


def test_names_are_different_and_every_arm_changes_something():
    names = [item.name for item in (NOISE, *ITEMS)]
    assert len({*names}) == len(names)
    assert all(item.without or item.kind is not EagerEngine or not item.graphs for item in ITEMS)
    assert not NOISE.without and NOISE.kind is EagerEngine and NOISE.graphs


def test_each_optimization_is_left_out_by_some_arm():
    made = [arm.get("optimizations", ALL) for arm in (*(item.without for item in ITEMS), *ARMS.values())]
    for name in {field.name for field in fields(Optimizations)} - {"kept"}:  # a file, and no optimisation
        assert any(getattr(how, name) != getattr(ALL, name) for how in made), name


def test_an_arm_is_made_of_arguments_that_an_engine_has(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    arms = [*(item.without for item in ITEMS), *ARMS.values(), *DRIFTING.values()]
    for settings in arms:
        made = engine(**settings)
        assert (made._full is made._model) is not settings.get("compiled", False)
        assert (made.cache_dtype == torch.uint8) is settings.get("fp8_cache", False)


@pytest.mark.parametrize("form", FORMS)
def test_an_engine_on_a_gpu_takes_the_form_that_it_is_given(form):
    # Where products are joined; nothing is computed.
    place = Place(device=torch.device("cuda"), dtype=torch.bfloat16)
    made = optimized(tiny_model(), place, Optimizations(attention=form))
    assert all(isinstance(block.attn1, form) for block in made.blocks)


def test_a_masked_engine_runs_the_compiled_form_with_a_mask(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    made = engine(Masked, compiled=True)
    for held in (None, 0, made.cache_spec.slots):
        assert made._form(held) == (made._full, False)
    assert made._full is not made._model
