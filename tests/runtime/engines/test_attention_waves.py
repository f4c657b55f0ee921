"""Attention is cut into whole waves where a clock says so, and only for the sizes that were timed."""

import json
from dataclasses import replace
from functools import partial
from types import MethodType

import pytest
import torch
from kit.measure import assert_close
from kit.tiny.models import draw, tiny_model
from kit.tiny.passes import pass_inputs

from bench.harness.subject import random_model
from plugins.errors import UserError
from plugins.operator import dense_attention
from plugins.triton import launch
from runtime.engines import optimizations
from runtime.engines.layers.wave_attention import Sizes, WaveAttention, candidates, rows_of_whole_waves
from runtime.engines.optimizations import ALL, Optimizations, Place, optimized
from runtime.engines.timing import attention_waves
from runtime.engines.timing.attention_waves import time_waves
from vmla.cache import CacheSpec
from vmla.config import MODEL_CONFIGS, named_config
from vmla.fused_attention import attend_to, attending, fused
from vmla.transformer import Block

pytestmark = pytest.mark.cpu

CPU = torch.device("cpu")
CONFIG = replace(named_config("sprites"), sample_height=32, sample_width=32)
PUBLISHED = Sizes(batch=1, heads=12, queries=4680, keys=9360)
FULL = 3
"""A chunk of the tiny models whose window is full."""


def test_the_library_gets_the_queries_of_whole_waves():
    assert rows_of_whole_waves(PUBLISHED, processors=132) == 4224  # 396 of 444 tiles, three waves
    assert rows_of_whole_waves(PUBLISHED, processors=148) == 4680  # exactly three
    assert rows_of_whole_waves(PUBLISHED, processors=500) == 0
    assert rows_of_whole_waves(PUBLISHED._replace(batch=2), processors=132) == 4224
    for processors in range(1, 600):
        rows = rows_of_whole_waves(PUBLISHED, processors)
        tiles = -(-rows // 128) * 12
        assert rows == 4680 or (tiles <= 444 // processors * processors < tiles + 12)


def test_nothing_is_timed_where_whole_waves_leave_nothing_or_are_none():
    assert candidates(PUBLISHED, 132) == (0, 1, 2, 3)
    assert candidates(PUBLISHED, 148) == candidates(PUBLISHED, 500) == (0,)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of 5 multiprocessors that is not there; what runs on it, as a list of splits."""
    ran = []
    monkeypatch.setattr(attention_waves, "unfit", lambda *_, **__: None)
    monkeypatch.setattr(attention_waves, "_processors", lambda device: 5)
    monkeypatch.setattr(attention_waves, "machine", lambda device: "H5")
    monkeypatch.setattr(WaveAttention, "cut", lambda self, *_: ran.append(self.splits))
    monkeypatch.setattr(attention_waves, "dense_attention", lambda *_: ran.append(0))
    return ran


@pytest.mark.parametrize(
    ("times", "wanted"),
    [({0: 513, 1: 540, 2: 460, 3: 470}, 2), ({0: 513, 1: 540, 2: 505, 3: 520}, None)],
    ids=["faster", "within the noise"],
)
def test_what_is_clearly_faster_is_taken_on_tensors_as_the_model_has_them(monkeypatch, gpu, times, wanted):
    spec = CacheSpec.of(CONFIG)

    def library(query, keys, values):
        assert query.shape[1] == keys.shape[1] == values.shape[1] == CONFIG.num_attention_heads
        assert keys.shape[2] == spec.positions * spec.tokens_per_frame
        assert keys.stride(2) == values.stride(2) == keys.shape[1] * (keys.shape[3] + values.shape[3])
        gpu.append(0)

    def timer(call):
        call()
        return times[gpu[-1]]

    monkeypatch.setattr(attention_waves, "dense_attention", library)
    found = time_waves(CONFIG, dtype=torch.bfloat16, device=CPU, timer=timer)
    assert set(gpu) == {0, 1, 2, 3}
    if wanted is None:
        assert found is None
    else:
        sizes = Sizes(1, CONFIG.num_attention_heads, CONFIG.chunk * spec.tokens_per_frame,
                      spec.positions * spec.tokens_per_frame)  # fmt: skip
        assert found == WaveAttention(sizes, rows_of_whole_waves(sizes, 5), wanted)


def test_what_was_chosen_is_kept_for_the_processes_that_follow(gpu, tmp_path):
    kept = tmp_path / "new" / "timed-choices.json"

    def timer(call):
        call()
        return {0: 5, 1: 4, 2: 3, 3: 4}[gpu[-1]]

    choose = partial(time_waves, CONFIG, device=CPU, timer=timer, kept=kept)
    first = choose(dtype=torch.bfloat16)
    assert first is not None and first.splits == 2 and gpu
    gpu.clear()
    assert choose(dtype=torch.bfloat16) == first and not gpu
    assert choose(dtype=torch.float16) == first and gpu  # timed by itself
    assert set(json.loads(kept.read_text())["splits"].values()) == {2}
    kept.write_text('{"splits": {"H5": 99}}')
    with pytest.raises(UserError, match="timed-choices.json: .*99.*remove it"):
        choose(dtype=torch.bfloat16)


def test_nothing_is_timed_where_the_kernel_does_not_run():
    def timer(call):
        raise AssertionError("timed")

    assert time_waves(named_config("debug"), dtype=torch.bfloat16, device=CPU, timer=timer) is None


def full_sizes(model):
    """The sizes of the attention of `model` to a full window of the two videos of `pass_inputs`."""
    seen = []

    def attend(window, query, keys, values):
        seen.append(Sizes.of(query, keys))
        return window.attend(query, keys, values)

    attending(fused(model), attend)(**pass_inputs(model.config, FULL), full=True)
    return seen[0]


@pytest.mark.parametrize(("full", "more", "cuts"), [(True, 0, True), (True, 1, False), (False, 0, False)])
def test_only_full_windows_of_the_sizes_that_were_timed_are_cut(monkeypatch, full, more, cuts):
    model, cut = tiny_model(), []
    sizes = full_sizes(model)

    def whole(self, query, keys, values):
        cut.append(self.splits)
        return dense_attention(query, keys, values)

    monkeypatch.setattr(WaveAttention, "cut", whole)
    form = WaveAttention(sizes._replace(keys=sizes.keys + more), 1, 2)
    inputs = pass_inputs(model.config, FULL)
    made, wanted = (made(**inputs, full=full) for made in (attending(fused(model), form), fused(model)))
    assert all(map(torch.equal, made, wanted))
    assert cut == [2] * model.config.num_layers * cuts


def in_the_kernels_place(query, keys, values, splits):
    """What the kernel gives, by the library."""
    return dense_attention(query, keys, values).transpose(1, 2).contiguous()


def test_a_compiled_block_calls_it_as_one_operator(monkeypatch):
    """On a CPU the library takes the kernel's part too."""
    model, graphs = tiny_model(num_layers=1), []
    inputs = pass_inputs(model.config, FULL)
    wanted, _ = fused(model)(**inputs, full=True)

    def kept(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(launch, "attention_strided", in_the_kernels_place)
    again = attending(fused(model), WaveAttention(full_sizes(model), rows=1, splits=2))
    forward = torch.compile(Block.forward, backend=kept, fullgraph=True, dynamic=False)
    again.blocks[0].forward = MethodType(forward, again.blocks[0])
    with torch.inference_mode():
        assert_close(again(**inputs, full=True)[0], wanted, rtol=1e-5, atol=1e-6)
    calls = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert sum("attention_in_waves" in call for call in calls) == 1


def test_the_operator_promises_what_it_returns(monkeypatch):
    monkeypatch.setattr(launch, "attention_strided", in_the_kernels_place)
    given = draw(2, 3, 8, 16), draw(2, 3, 20, 16, seed=1), draw(2, 3, 20, 32, seed=2)
    checks = ("test_schema", "test_faketensor")
    operator = torch.ops.vmla.attention_in_waves.default
    found = torch.library.opcheck(operator, (*given, 4, 2), test_utils=checks)
    assert found == dict.fromkeys(checks, "SUCCESS")
    assert_close(operator(*given, 4, 2), dense_attention(*given), rtol=1e-5, atol=1e-6)


def test_it_is_timed_for_compiled_blocks_on_a_gpu_unless_that_is_left_out(monkeypatch, tmp_path):
    asked = []
    cut = WaveAttention(PUBLISHED, 1, 2)
    monkeypatch.setattr(
        optimizations, "time_waves", lambda config, **given: asked.append(given["kept"]) or cut
    )

    def forms(how=ALL, device="cuda", model=None, **settings):
        place = Place(device=torch.device(device), dtype=torch.float32, **{"compiled": True, **settings})
        return {
            getattr(block.attn1, "attend", None)
            for block in optimized(model or tiny_model(), place, how).blocks
        }

    assert forms() == forms(Optimizations(kept=tmp_path)) == {cut}
    assert asked == [None, tmp_path]
    assert forms(Optimizations(waves=False)) == forms(compiled=False) == forms(processes=2) == {attend_to}
    assert forms(device="cpu") == {attend_to}
    none = forms(absorbed=True), forms(Optimizations(joined=False))
    assert none == ({None},) * 2 and len(asked) == 2
    forms(model=random_model(replace(MODEL_CONFIGS["debug"], layout="mha")))
    assert len(asked) == 2
