"""Splits of keys are timed on a full window when an engine in latent space starts on a GPU."""

from dataclasses import replace

import pytest
import torch

from plugins.triton import launch
from plugins.triton.split_kv import TimedSplits
from runtime.engines.timing import key_splits
from runtime.engines.timing.key_splits import time_absorbed
from vmla.cache import CacheSpec
from vmla.config import named_config

pytestmark = pytest.mark.cpu

CPU = torch.device("cpu")


def test_what_is_fastest_on_a_full_window_is_what_passes_of_that_size_take(monkeypatch):
    config = replace(named_config("sprites"), sample_height=16, sample_width=16)
    spec, ran = CacheSpec.of(config), []
    window = spec.positions * spec.tokens_per_frame

    def kernel(query, cached, own, cos, sin, valid, scale, scales, splits):
        assert query.shape == (1, config.num_attention_heads, own.shape[1], spec.entry_width)
        assert cached.shape == spec.shape()[1:]
        assert cached.shape[1] + own.shape[1] == len(cos) == len(sin) == len(valid) == window
        ran.append(splits)

    def timer(call):
        call()
        return {1: 3.0, 2: 2.0, 3: 2.5}[ran[-1]]

    monkeypatch.setattr(key_splits, "unfit", lambda operator, tensors: None)
    monkeypatch.setattr(launch, "absorbed", kernel)
    monkeypatch.setattr(launch, "TIMED_SPLITS", TimedSplits())
    assert time_absorbed(config, dtype=torch.bfloat16, device=CPU, timer=timer) == 2
    query = torch.zeros(1, dtype=torch.bfloat16)
    rows = config.num_attention_heads * config.chunk * config.tokens_per_frame
    assert launch._splits("mla_attention_absorbed", query, rows, 1, window) == 2
    assert launch._splits("mla_attention_absorbed", query, rows, 2, window) == 1  # not timed; a CPU


def test_nothing_is_timed_where_the_kernel_does_not_run():
    def timer(call):
        raise AssertionError("timed")

    assert time_absorbed(named_config("debug"), dtype=torch.bfloat16, device=CPU, timer=timer) is None
