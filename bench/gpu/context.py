"""What the stages of `vmla-bench gpu` share: the model, the device, and what earlier ones found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bench.harness.subject import RandomCheckpoint, random_model
from bench.speed.attention_arms import Shape
from bench.speed.engines import Bench, open_bench
from vmla.cache import CacheSpec
from vmla.config import Layout, ModelConfig
from vmla.transformer import VideoMLA


@dataclass(kw_only=True)
class Context:
    """What the stages share, and what earlier ones found."""

    config: ModelConfig
    name: str
    device: torch.device
    rounds: int
    folder: Path
    most_streams: int = 1 << 20
    """Caches that are allocated at most."""
    peaks: dict[str, Any] = field(default_factory=lambda: {"matrix": {}})
    bench: Bench | None = None
    eager_rows: list[dict[str, Any]] = field(default_factory=list)
    save: Callable[..., object] = lambda **stages: None
    """Takes a part of a stage that another might not live to see."""

    @property
    def narrow(self) -> str:
        """The precision that matters on the device."""
        return "bf16" if self.device.type == "cuda" else "fp32"

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of the precision."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def attention(self) -> Shape:
        """The shape of one layer's attention."""
        c, spec = self.config, CacheSpec.of(self.config)
        return Shape(
            batch=1, heads=c.num_attention_heads, queries=c.chunk * c.tokens_per_frame,
            keys=spec.positions * c.tokens_per_frame, nope=c.qk_nope_head_dim, rotary=c.qk_rope_head_dim,
            value=c.attention_head_dim, content=c.kv_lora_rank,
        )  # fmt: skip

    def products(self) -> dict[str, tuple[int, int, int]]:
        """The matrix products of a layer: rows, outputs, inputs."""
        c, s = self.config, self.attention
        return {
            "down": (s.queries, c.q_lora_rank + c.entry_width, c.inner_dim),
            "queries": (s.queries, c.inner_dim, c.q_lora_rank),
            "expansion": (
                s.keys,
                c.num_attention_heads * (c.qk_nope_head_dim + c.attention_head_dim),
                c.kv_lora_rank,
            ),
            "output": (s.queries, c.inner_dim, c.inner_dim),
            "feed-forward up": (s.queries, c.ffn_dim, c.inner_dim),
            "feed-forward down": (s.queries, c.inner_dim, c.ffn_dim),
        }

    def model(self, layout: Layout = "mla") -> VideoMLA:
        """Random weights in the device's precision."""
        return random_model(replace(self.config, layout=layout), device=self.device.type).to(self.dtype)

    def open_bench(self) -> Bench:
        """The engines' bench, with its baseline running."""
        if self.bench is None:
            subject = RandomCheckpoint.of(self.config, self.name, device=self.device.type)
            self.bench, row = open_bench(
                subject, self.device, batch=1, rounds=self.rounds, folder=self.folder, peaks=self.peaks
            )
            self.eager_rows = [row]
        return self.bench
