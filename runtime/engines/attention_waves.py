"""Chooses, when an engine starts on a GPU, whether attention to a full window is cut into whole waves.

The library alone, and with the last queries left to our kernel with one, two and three splits of the keys
(`runtime.engines.layers.wave_attention`), are timed on tensors of the model's own sizes and strides; the
library alone is taken unless another is clearly faster. With compiled blocks only, which is for long videos:
compiling our kernel three times takes seconds. Forms round differently, so the choice is kept in a file
beside the compiled code: a process that continues a video on this machine makes the same frames.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from plugins.atomic_files import atomic_write_text
from plugins.dispatch import unfit
from plugins.documents.json_file import read_json
from plugins.documents.typed import Between, typed
from plugins.operator import dense_attention
from plugins.triton.split_kv import TIMED, Timer, fastest_splits
from runtime.engines.layers.wave_attention import Sizes, WaveAttention, candidates, rows_of_whole_waves
from vmla.cache import CacheSpec
from vmla.config import ModelConfig


@dataclass(frozen=True)
class TimedChoices:
    """What was chosen on a machine."""

    splits: dict[str, Annotated[int, Between(0, max(TIMED))]]
    """Splits of our kernel by what was timed; 0 is the library alone."""


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
    sizes, (machine, processors) = Sizes.of(query, keys), _machine(device)
    rows, name = rows_of_whole_waves(sizes, processors), f"{machine}, {dtype}, {tuple(sizes)}"
    known = {} if kept is None else _read(kept)
    if name not in known:

        def run(splits: int) -> Tensor:
            return (WaveAttention(sizes, rows, splits).cut if splits else dense_attention)(*window)

        with torch.inference_mode():
            known[name] = fastest_splits(run, timer, candidates(sizes, processors))
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(kept, json.dumps(asdict(TimedChoices(known)), indent=1) + "\n")
    return WaveAttention(sizes, rows, known[name]) if known[name] else None


def _read(kept: Path) -> dict[str, int]:
    """The choices that a file has; none if it is not there."""
    if not kept.exists():
        return {}
    mend = "remove it, and attention is timed again"
    return typed(read_json(kept, mend=mend), TimedChoices, str(kept), mend=mend).splits


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


def _machine(device: torch.device) -> tuple[str, int]:
    """All that times depend on besides sizes, and the number of the GPU's multiprocessors."""
    found = torch.cuda.get_device_properties(device)
    versions = f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
    return f"{found.name}, {versions}", int(found.multi_processor_count)
