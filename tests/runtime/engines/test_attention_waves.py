"""Attention is cut into whole waves where a clock says so, and only for the sizes that were timed."""

import json
from dataclasses import replace
from functools import partial
from types import MethodType

import pytest
import torch
from kit.measure import assert_close
from kit.models import draw, tiny_model
from kit.passes import pass_inputs

from bench.harness.subject import RandomText
from plugins.errors import UserError
from plugins.operator import dense_attention
from plugins.triton import launch
from runtime.engines import attention_waves, base
from runtime.engines.attention_waves import time_waves
from runtime.engines.base import EagerEngine
from runtime.engines.layers.wave_attention import Sizes, WaveAttention, candidates, rows_of_whole_waves
from vmla.cache import CacheSpec
from vmla.config import named_config
from vmla.fused_attention import fused
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
    monkeypatch.setattr(attention_waves, "_machine", lambda device: ("H5", 5))
    monkeypatch.setattr(WaveAttention, "__call__", lambda self, *_: ran.append(self.splits))
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
    kept = tmp_path / "new" / "attention-waves.json"

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
    with pytest.raises(UserError, match="attention-waves.json: .*99.*remove it"):
        choose(dtype=torch.bfloat16)


def test_nothing_is_timed_where_the_kernel_does_not_run():
    def timer(call):
        raise AssertionError("timed")

    assert time_waves(named_config("debug"), dtype=torch.bfloat16, device=CPU, timer=timer) is None


def test_other_sizes_than_those_timed_go_to_the_library():
    query, keys, values = draw(2, 3, 8, 16), draw(2, 3, 20, 16, seed=1), draw(2, 3, 20, 16, seed=2)
    attend = WaveAttention(Sizes(1, 3, 8, 20), 4, 2)
    assert attend(query, keys, values).equal(dense_attention(query, keys, values))


def recorded(seen):
    """The library's attention, which notes the sizes that it is called with."""

    def attend(query, keys, values):
        seen.append(Sizes.of(query, keys))
        return dense_attention(query, keys, values)

    return attend


def test_only_full_windows_are_attended_in_waves():
    model, seen = tiny_model(), []
    cut, whole = fused(model, recorded(seen)), fused(model)
    inputs = pass_inputs(model.config, FULL)
    for got, want in zip(cut(**inputs, full=True), whole(**inputs, full=True), strict=True):
        assert got.equal(want)
    assert len(seen) == model.config.num_layers
    cut(**inputs)
    assert len(seen) == model.config.num_layers


def in_the_kernels_place(query, keys, values, splits):
    """What the kernel gives, by the library."""
    return dense_attention(query, keys, values).transpose(1, 2).contiguous()


def test_a_compiled_block_calls_it_as_one_operator(monkeypatch):
    """On a CPU the library takes the kernel's part too."""
    model, seen, graphs = tiny_model(num_layers=1), [], []
    inputs = pass_inputs(model.config, FULL)
    wanted, _ = fused(model, recorded(seen))(**inputs, full=True)

    def kept(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(launch, "attention_strided", in_the_kernels_place)
    again = fused(model, WaveAttention(seen[0], rows=1, splits=2))
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


def test_an_engine_times_it_on_a_gpu_unless_it_is_told_not_to(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(base, "time_waves", lambda config, **given: asked.append(given["kept"]) or "cut")
    model = tiny_model()
    engine = EagerEngine(model, RandomText(model.config), device=CPU, dtype=torch.float32)
    assert engine._timed_attention(True) is None and not asked  # a CPU
    engine.device = torch.device("cuda")
    assert engine._timed_attention(True) == engine._timed_attention(tmp_path) == "cut"
    assert asked == [None, tmp_path]
    assert engine._timed_attention(False) is None
    engine.absorbed = True
    assert engine._timed_attention(True) is None
    engine.absorbed, engine.config = False, replace(model.config, layout="mha")
    assert engine._timed_attention(True) is None and len(asked) == 2
