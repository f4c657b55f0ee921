"""Times, when an engine starts on a GPU, into how many splits its attention kernel cuts the keys.

For attention in latent space alone: it takes our kernel in every pass. Expanded attention takes a library's
once the window is full, and the few chunks before that would not repay compiling the kernel three times.
Sums of splits round differently, so two processes with different timings differ in the last bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plugins.dispatch import unfit
from plugins.triton.split_kv import Timer
from vmla.cache import CacheSpec
from vmla.config import ModelConfig


def time_absorbed(
    config: ModelConfig, *, dtype: torch.dtype, device: torch.device, timer: Timer
) -> int | None:
    """Time the kernel on a full window of one video; later passes of that size use the fastest number.

    None where the kernel cannot take the inputs, and passes use another backend.
    """
    spec, heads = CacheSpec.of(config), config.num_attention_heads
    own, cached = (frames * spec.tokens_per_frame for frames in (spec.chunk, spec.slots))
    rotary = config.qk_rope_head_dim

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float32, device=device).to(dtype)

    angles = torch.rand(cached + own, rotary // 2, device=device)
    with torch.inference_mode():
        tensors = (
            drawn(1, heads, own, spec.entry_width), drawn(1, cached, spec.entry_width),
            drawn(1, own, spec.entry_width), angles.cos(), angles.sin(),
            torch.ones(cached + own, dtype=torch.bool, device=device),
        )  # fmt: skip
        if unfit("mla_attention_absorbed", tensors) is not None:
            return None
        from plugins.triton import launch

        return launch.time_absorbed_splits(*tensors, (config.qk_nope_head_dim + rotary) ** -0.5, timer)


def event_timer(call: Callable[[], object]) -> float:
    """Milliseconds of `call` on the current GPU, by events around it."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))
