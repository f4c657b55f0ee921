"""Operations and bytes of a pass: the published table, PyTorch's own counter, and what must add up."""

from dataclasses import replace

import pytest
import torch

from bench.harness.operation_counts import flops_by_dispatch, operations
from bench.harness.subject import random_model
from vmla.cache import CacheSpec
from vmla.config import named_config
from vmla.flops import PassCost

pytestmark = pytest.mark.cpu

WAN = named_config("wan-1.3b")
WINDOWS = (9360, 10920, 32760)
LAYER_PASSES = 150
"""30 layers, four steps and the clean pass."""

TABLE = {
    ("mha", "expanded", 192, 32): (101.1, 107.8, 202.0),
    ("mla", "absorbed", 192, 32): (120.9, 131.8, 284.9),
    ("mla", "expanded", 192, 32): (96.4, 103.4, 201.0),
    ("mla", "once", 192, 32): (95.8, 102.6, 197.5),
    ("mla", "absorbed", 160, 64): (115.7, 125.8, 267.0),
    ("mla", "expanded", 160, 64): (96.0, 102.9, 199.5),
    ("mla", "absorbed", 128, 96): (110.4, 119.7, 249.2),
    ("mla", "expanded", 128, 96): (95.6, 102.5, 198.3),
}
"""TFLOP of a whole chunk's layers at Wan's sizes, by layout, form, content and rotary width."""


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_chunks_cost_what_the_arithmetic_by_hand_says(row):
    layout, form, content, rotary = row
    config = replace(WAN, layout=layout, kv_lora_rank=content, qk_rope_head_dim=rotary)
    costs = [PassCost(config=config, form=form, keys=keys).layer_flops() * LAYER_PASSES for keys in WINDOWS]
    assert tuple(round(cost / 1e12, 1) for cost in costs) == TABLE[row]


def test_the_parts_of_a_layer_are_those_of_the_table():
    parts = {p.name: round(p.flops / 30 / 1e9, 1) for p in PassCost(config=WAN, keys=9360).parts()}
    assert parts.pop("patches and time") < 2
    assert parts == {
        "projections": 47.4, "expansion": 9.7, "attention": 269.1, "text projections": 44.2,
        "text attention": 14.7, "feed-forward": 257.6,
    }  # fmt: skip
    heads = PassCost(config=replace(WAN, layout="mha"), keys=9360).parts()
    assert round(heads[0].flops / 30 / 1e9, 1) == 88.3


@pytest.mark.parametrize("layout", ["mla", "mha"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_formula_counts_what_runs(layout, batch):
    config = named_config("debug", layout=layout)
    seen = flops_by_dispatch(random_model(config), batch=batch)
    assert seen == PassCost(config=config, batch=batch).flops


def test_absorbed_attention_without_a_kernel_sums_the_rotary_part_too():
    """The formula is the kernel's; SDPA takes keys for values and drops their rotary part afterwards."""
    config = named_config("debug")
    queries = config.chunk * config.tokens_per_frame
    window = CacheSpec.of(config).positions * config.tokens_per_frame
    dropped = 2 * config.num_layers * config.num_attention_heads * queries * window * config.qk_rope_head_dim
    seen = flops_by_dispatch(random_model(config), absorbed=True)
    assert seen - dropped == PassCost(config=config, form="absorbed").flops


def test_weights_are_read_once_however_many_videos():
    one, four = (PassCost(config=WAN, batch=batch) for batch in (1, 4))
    assert four.flops == pytest.approx(4 * one.flops)
    with torch.device("meta"):
        weights = sum(layer.weight.numel() for layer in _matrices(WAN))
    assert 4 * one.bytes(2) - four.bytes(2) == pytest.approx(3 * 2 * weights, rel=0.01)


def _matrices(config):
    """The matrices that a pass multiplies with: not those that make the text's keys and values."""
    from vmla.transformer import VideoMLA

    model = VideoMLA(config)
    for name, module in model.named_modules():
        per_prompt = name.endswith(("attn2.to_k", "attn2.to_v")) or "text_embedder" in name
        if isinstance(module, torch.nn.Linear) and not per_prompt:
            yield module


def test_a_pass_reads_nothing_back():
    for layout in ("mla", "mha"):
        seen = operations(named_config("debug", layout=layout))
        assert seen.reads == 0
        assert seen.launches > 100
