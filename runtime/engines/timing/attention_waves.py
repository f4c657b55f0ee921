"""Chooses, when an engine starts on a GPU, whether attention to a full window is cut into whole waves.

The library alone, and with the last queries left to our kernel with one, two and three splits of the keys
(`runtime.engines.layers.wave_attention`), are timed on tensors of the model's own sizes and strides; the
library alone is taken unless another is clearly faster. With compiled blocks only, which is for long videos:
compiling our kernel three times takes seconds.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from plugins.dispatch import unfit
from plugins.operator import dense_attention
from plugins.triton.split_kv import Timer, fastest_splits
from runtime.device.timed_choices import kept_choice, machine
from runtime.engines.layers.wave_attention import Sizes, WaveAttention, candidates, rows_of_whole_waves
from vmla.cache import CacheSpec
from vmla.config import ModelConfig


def time_waves(
    config: ModelConfig, *, dtype: torch.dtype, device: torch.device, timer: Timer, kept: Path | None = None
) -> WaveAttention | None:
    """The fastest attention to a full window of one video; None where that is the library alone.

    None too, without timing, where our kernel cannot take the inputs or the queries fill whole waves. What
    the file `kept` has is not timed again, and what is timed is added to it.

    Raises:
        UserError: if `kept` is damaged.
    """
    query, keys, values = window = _drawn(config, dtype, device)
    valid = torch.ones(keys.shape[2], dtype=torch.bool, device=device)
    if unfit("mla_attention", (*window, valid), strided=True) is not None:
        return None
    sizes, processors = Sizes.of(query, keys), _processors(device)
    rows = rows_of_whole_waves(sizes, processors)

    def run(splits: int) -> Tensor:
        return (WaveAttention(sizes, rows, splits).cut if splits else dense_attention)(*window)

    def choose() -> int:
        with torch.inference_mode():
            return fastest_splits(run, timer, candidates(sizes, processors))

    splits = kept_choice(kept, "splits", f"{machine(device)}, {dtype}, {tuple(sizes)}", choose)
    return WaveAttention(sizes, rows, splits) if splits else None


def _drawn(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random query, keys and values, as `vmla.fused_attention` gives them to attention."""
    spec, heads, deep = CacheSpec.of(config), config.num_attention_heads, config.attention_head_dim
    width = config.qk_nope_head_dim + config.qk_rope_head_dim
    own, cached = (frames * spec.tokens_per_frame for frames in (spec.chunk, spec.slots))
    made = torch.randn(1, cached + own, heads * (width + deep), device=device).to(dtype)
    keys, values = made.split([heads * width, heads * deep], dim=-1)
    query = torch.randn(1, own, heads * width, device=device).to(dtype)
    query, keys, values = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, keys, values))
    return query, keys, values


def _processors(device: torch.device) -> int:
    """The number of the GPU's multiprocessors."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
