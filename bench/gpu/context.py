"""What the measurements of `vmla-bench gpu` share: the model, the device, and what earlier ones found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bench.harness.subject import RandomCheckpoint, RandomText, random_model
from bench.speed.attention_arms import Shape
from bench.speed.engines import Bench, open_bench
from runtime.engines.base import EagerEngine
from vmla.cache import CacheSpec
from vmla.config import Layout, ModelConfig
from vmla.scheduler import Sampler
from vmla.transformer import VideoMLA

Pieces = Iterator[dict[str, Any]]
"""A measurement's results, piece by piece. Each is saved before the next is measured; lists grow."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One of the things that `vmla-bench gpu` measures; `--stages` chooses them by name."""

    name: str
    seconds: float
    """Its share of the time: it is stopped after this, and not begun with less than half of it left."""
    run: Callable[[Context], Pieces]


@dataclass(kw_only=True)
class Context:
    """The model and device that measurements share, and the results of earlier ones."""

    config: ModelConfig
    name: str
    device: torch.device
    rounds: int
    folder: Path
    """Folder of engines, traces and compiled code."""
    most_streams: int = 1 << 20
    """The most caches that are allocated."""
    sampler: Sampler = Sampler()
    """The paper's: four steps that re-noise."""
    scale: float = 1.0
    """Factor for measurements that last a given time, so that tests can shorten them."""
    drift_chunks: int = 20
    """Chunks of the rollouts that are compared with float32."""
    peaks: dict[str, Any] = field(default_factory=lambda: {"matrix": {}})
    bench: Bench | None = None
    eager_rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def narrow(self) -> str:
        """The precision that users run on the device."""
        return "bf16" if self.device.type == "cuda" else "fp32"

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of the precision."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def compiles(self) -> bool:
        """Whether `torch.compile` gets the blocks: on a GPU, as for users."""
        return self.device.type == "cuda"

    @property
    def windows(self) -> tuple[ModelConfig, ModelConfig]:
        """The model with its own window, and with Self-Forcing's 21 latent frames (Wan: 32,760 keys)."""
        long = 21 - self.config.chunk - self.config.sink
        return self.config, replace(self.config, history=long)

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
        """A model with random weights in the device's precision."""
        return random_model(replace(self.config, layout=layout), device=self.device.type).to(self.dtype)

    def engine(
        self, config: ModelConfig | None = None, kind: type[EagerEngine] = EagerEngine, **changes: Any
    ) -> EagerEngine:
        """An engine with random weights, as users get it except for `changes`.

        Args:
            config: sizes of the model, if they are not the context's.
            kind: the class of the engine.
            changes: arguments of `EagerEngine`; `compiled` has no effect on a CPU.
        """
        model = random_model(config or self.config, device=self.device.type)
        settings = {"compiled": True, "dtype": self.dtype, **changes}
        settings["compiled"] = settings["compiled"] and self.compiles
        return kind(model, RandomText(model.config), device=self.device, **settings)

    def open_bench(self) -> Bench:
        """The engines' bench, with its baseline running."""
        if self.bench is None:
            subject = RandomCheckpoint.of(self.config, self.name, device=self.device.type)
            self.bench, row = open_bench(
                subject, self.device, batch=1, rounds=self.rounds, folder=self.folder / "engines",
                peaks=self.peaks,
            )  # fmt: skip
            self.eager_rows = [row]
        return self.bench

    def close_bench(self) -> None:
        """Free the engines that the bench holds, for measurements that need the memory."""
        self.bench = None
