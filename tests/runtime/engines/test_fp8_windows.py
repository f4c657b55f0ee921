"""Attention in float8 in an engine: for which windows, in which modules, and when it is not taken."""

import logging
from dataclasses import replace
from functools import partial

import pytest
import torch
from kit.tiny.passes import pass_inputs

from bench.harness.subject import RandomText, random_model
from plugins.errors import UserError
from plugins.fp8.attention import fp8_attention, reference_attend
from plugins.fp8.cudnn_attention import AttentionSizes
from runtime.engines import base, optimizations
from runtime.engines.base import EagerEngine
from runtime.engines.layers import fp8_attention as layer
from runtime.engines.layers.fp8_attention import Fp8Attention, full_window, with_fp8_attention
from runtime.engines.optimizations import ALL, Optimizations, Place, optimized
from runtime.prompts.sources import FixedPrompts
from runtime.rollout.rollout import Rollout
from vmla.attention import Window
from vmla.config import MODEL_CONFIGS, named_config
from vmla.fused_attention import JoinedAttention, QueriesApart, attend_to, attending, fused
from vmla.scheduler import Sampler
from vmla.transformer import StepInputs

pytestmark = pytest.mark.cpu

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CONFIG = replace(MODEL_CONFIGS["debug"], num_layers=2)


def attentions(model):
    return [part for part in model.modules() if isinstance(part, JoinedAttention)]


def chosen(model, monkeypatch, *, attend=reference_attend, faster=True, reason=None, kept=None):
    """What an engine's start makes of `model` where `attend` stands for cuDNN's form."""
    monkeypatch.setattr(layer, "attend", attend)
    monkeypatch.setattr(layer, "unfit", lambda *_: reason)
    monkeypatch.setattr(layer, "is_faster", lambda *_: faster)
    monkeypatch.setattr(layer, "machine", lambda device: "H5")
    return with_fp8_attention(
        model, dtype=torch.float32, device=CPU, compiled=False, timer=lambda call: 1.0, kept=kept
    )


def test_a_full_window_of_the_published_model_has_the_sizes_that_the_kernels_get():
    assert full_window(named_config("wan-1.3b")) == AttentionSizes(1, 12, 4680, 15600, 128, 128)


def test_full_windows_attend_in_float8_and_all_others_as_before(monkeypatch):
    sizes, seen = full_window(CONFIG), []
    form = Fp8Attention(sizes, lambda *codes: seen.append(1) or reference_attend(*codes))
    batch, heads, queries, keys, width, deep = sizes

    def inputs(batch, keys):
        shapes = (queries, width), (keys, width), (keys, deep)
        return [torch.randn(batch, heads, *shape) for shape in shapes]

    angles = torch.zeros(keys, 1)
    full, masked = Window(None, angles, angles), Window(torch.ones(keys, dtype=torch.bool), angles, angles)
    tensors = inputs(batch, keys)
    assert torch.equal(form(full, *tensors), fp8_attention(*tensors, reference_attend))
    assert len(seen) == 1
    for window, other in ((masked, tensors), (full, inputs(2, keys)), (full, inputs(batch, keys - 1))):
        assert torch.equal(form(window, *other), window.attend(*other))
    assert len(seen) == 1


def test_an_engine_comes_close_and_the_model_stays_as_it_was(monkeypatch):
    plain = fused(random_model(CONFIG))
    narrow = chosen(plain, monkeypatch)
    assert all(isinstance(part.attend, Fp8Attention) for part in attentions(narrow))
    assert all(part.attend is attend_to for part in attentions(plain))
    inputs = StepInputs(**pass_inputs(CONFIG, 3, batch=1))
    with torch.inference_mode():
        for wanted, got in zip(plain(*inputs, full=True), narrow(*inputs, full=True), strict=True):
            assert 1e-5 < (got - wanted).norm() / wanted.norm() < 0.1
        for wanted, got in zip(plain(*inputs, full=False), narrow(*inputs, full=False), strict=True):
            assert torch.equal(got, wanted)


def refusing(*codes):
    raise RuntimeError("no engine\nand much more")


def reversing(query, *others):
    return reference_attend(query, *others).flip(2).contiguous()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"reason": "not installed"}, "not installed"),
        ({"attend": refusing}, "cuDNN's attention in fp8 failed: no engine"),
        ({"attend": reversing}, "is wrong here"),
        ({"faster": False}, "not clearly faster here"),
    ],
)
def test_what_is_not_taken_is_one_line(monkeypatch, caplog, how, said):
    plain = fused(random_model(CONFIG))
    with caplog.at_level(logging.WARNING):
        assert chosen(plain, monkeypatch, **how) is plain
    (line,) = [record.getMessage() for record in caplog.records if record.name == layer.__name__]
    assert line.startswith("attention stays in float32: ") and said in line and "\n" not in line


def test_a_compiled_block_keeps_its_graph_whole(monkeypatch):
    graphs = []

    def counted(graph, _):
        graphs.append(graph)
        return graph.forward

    narrow = attending(fused(random_model(CONFIG)), Fp8Attention(full_window(CONFIG), reference_attend))
    attention, spec = attentions(narrow)[0], full_window(CONFIG)
    x = torch.randn(1, spec.queries, CONFIG.inner_dim)
    cached = torch.randn(1, spec.keys - spec.queries, CONFIG.entry_width)
    angles = torch.rand(spec.keys, CONFIG.qk_rope_head_dim // 2)
    with torch.inference_mode():
        window = Window(None, angles.cos(), angles.sin())
        made, _ = torch.compile(attention, backend=counted, fullgraph=True)(x, cached, window)
        assert torch.allclose(made, attention(x, cached, window)[0], atol=1e-5)
    assert len(graphs) == 1


def test_which_form_was_faster_is_kept_for_the_processes_that_follow(monkeypatch, tmp_path):
    kept, plain = tmp_path / "new" / "timed-choices.json", fused(random_model(CONFIG))
    first = chosen(plain, monkeypatch, faster=True, kept=kept)
    assert first is not plain
    assert chosen(plain, monkeypatch, faster=False, kept=kept) is not plain
    assert chosen(plain, monkeypatch, faster=False) is plain
    kept.write_text('{"fp8_attention": {"H5": "often"}}')
    with pytest.raises(UserError, match="timed-choices.json: .*often.*remove it"):
        chosen(plain, monkeypatch, kept=kept)


def test_only_float8_on_a_gpu_asks_for_it(monkeypatch):
    asked = []
    monkeypatch.setattr(optimizations, "with_fp8_attention", lambda model, **_: asked.append(1) or model)

    def ask(device, how=ALL, config=CONFIG, **settings):
        place = Place(device=torch.device(device), dtype=torch.float32, **settings)
        optimized(random_model(config), place, how)
        return len(asked)

    assert ask("cpu", fp8=True) == ask("cuda") == 0
    assert ask("cuda", Optimizations(fp8_attention=False), fp8=True) == 0
    assert ask("cuda", config=replace(CONFIG, layout="mha"), fp8=True) == 0
    assert ask("cuda", fp8=True, processes=2) == 0
    assert ask("cuda", fp8=True) == 1


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Engines on this CPU get the layout of weights, the attention and the compiled blocks of a GPU's."""
    monkeypatch.setattr(
        base, "optimized", lambda model, place, how: optimized(model, replace(place, device=GPU), how)
    )
    monkeypatch.setattr(layer, "attend", reference_attend)
    monkeypatch.setattr(layer, "unfit", lambda *_: None)
    monkeypatch.setattr(layer, "_objection", lambda *_, **__: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))


@pytest.mark.parametrize("fp8_cache", [False, True])
def test_all_that_float8_does_goes_together_in_a_video(as_on_a_gpu, fp8_cache):
    """Query layers apart, float8 attention, a float8 cache and blocks that are compiled for full windows."""
    model = random_model(replace(CONFIG, num_layers=3))

    def video(**settings):
        one = EagerEngine(model, RandomText(CONFIG), device=CPU, dtype=torch.float32, **settings)
        rollout, made = Rollout(one, FixedPrompts("a star"), Sampler(steps=2), seeds=[0]), []
        for _ in range(5):
            made.append(rollout.denoise().clone())
            rollout.update_cache()
        assert rollout.buffers.held == one.cache_spec.slots
        return one, torch.cat(made, dim=2)

    settings = {"fp8": True, "fp8_cache": fp8_cache}
    one, compiled = video(compiled=True, **settings)
    eager, plain = video(**settings)[1], video(optimizations=Optimizations(joined=False))[1]
    for form in (one._model, one._full):
        assert [type(part) is QueriesApart for part in attentions(form)] == [False, True, False]
        assert all(isinstance(part.attend, Fp8Attention) for part in attentions(form))
    assert (compiled - eager).norm() < 0.05 * eager.norm()
    assert 1e-3 < (eager - plain).norm() / plain.norm() < 0.3
