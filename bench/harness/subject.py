"""The subjects of measurements: a checkpoint, or a named shape with random weights scaled like real ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from plugins.errors import UserError
from runtime.engines.base import EagerEngine, Engine
from runtime.prompts.sources import FixedPrompts
from runtime.rollout.decoding import Decoder, NoDecoder
from runtime.rollout.rollout import Chunk, Rollout, rollout
from vmla.cache import CacheSpec
from vmla.config import Layout, ModelConfig, named_config
from vmla.scheduler import Sampler
from vmla.text import TextEncoder
from vmla.text.byte_tokenizer import ByteTokenizer
from vmla.transformer import VideoMLA
from vmla.weights.checkpoint import SHIPPED, Checkpoint, open_checkpoint
from vmla.weights.uninitialised import Uninitialised

PROMPT = "a red star bouncing on a navy background"
ENDLESS = 1 << 40
"""Chunks of a rollout that is stopped from outside."""


@dataclass(frozen=True)
class RandomCheckpoint(Checkpoint):
    """A named shape in place of a checkpoint: random weights, noise for text embeddings, and no codec."""

    config: ModelConfig
    seed: int = 0
    device: str = "cpu"

    @classmethod
    def of(cls, config: ModelConfig, name: str, *, device: str = "cpu") -> RandomCheckpoint:
        """The shape `config`, called `name`."""
        return cls(Path(f"random-{name}-{config.layout}"), {}, config, device=device)

    def model_config(self) -> ModelConfig:
        """The configuration of the model that is measured."""
        return self.config

    def transformer(self) -> VideoMLA:
        """The denoiser in float32: the same weights at every call."""
        return random_model(self.config, seed=self.seed, device=self.device)

    def model_hash(self) -> str:
        """SHA-256 of everything that determines the weights."""
        drawn = json.dumps(
            {**self.config.identity(), "seed": self.seed, "device": self.device}, sort_keys=True
        )
        return hashlib.sha256(drawn.encode()).hexdigest()

    def text(self) -> TextEncoder:
        """A text encoder that returns noise."""
        return RandomText(self.config)

    def sampler(self) -> Sampler:
        """The paper's sampler: four steps that re-noise."""
        return Sampler()


class _Embeddings(nn.Module):
    """Embeddings [tokens, text width] in a text model's place."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randn(config.text_tokens, config.text_dim, generator=generator)
        self.rows = nn.Parameter(drawn, requires_grad=False)


class RandomText(TextEncoder):
    """A text encoder that gives the same noise for every prompt."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(_Embeddings(config), ByteTokenizer(), tokens=config.text_tokens)

    def __call__(self, prompts: Sequence[str | None]) -> Tensor:
        """Noise [B, tokens, text width] float32, the same for any prompts."""
        rows: Tensor = self.encoder.rows  # type: ignore[assignment]
        return rows.expand(len(prompts), -1, -1).contiguous()


def random_model(config: ModelConfig, *, seed: int = 0, device: str = "cpu") -> VideoMLA:
    """A model whose activations have the size of a trained one's: power and rounding depend on it.

    Matrices preserve the size of their inputs (normal, variance 1 / inputs), gains are about one,
    biases small; nothing is zero.
    """
    with torch.device(device), Uninitialised():
        model = VideoMLA(config)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        gain = name.endswith("weight") and parameter.ndim == 1
        size = 0.1 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
        parameter.data.normal_(generator=generator).mul_(size).add_(float(gain))
    return model.eval().requires_grad_(False)


def open_subject(checkpoint: str | None, shape: str | None, *, device: str = "cpu") -> Checkpoint:
    """The checkpoint, or the shape if one is named; the shipped checkpoint if neither is.

    Raises:
        UserError: if both are given, or the one given does not exist.
    """
    if checkpoint is not None and shape is not None:
        raise UserError("give --checkpoint or --shape, not both")
    if shape is not None:
        return RandomCheckpoint.of(named_config(shape), shape, device=device)
    return open_checkpoint(SHIPPED if checkpoint is None else checkpoint)


def in_layout(subject: Checkpoint, layout: Layout, *, device: str = "cpu") -> Checkpoint:
    """`subject` itself, or random weights of its shape if it has the other layout."""
    config = subject.model_config()
    if config.layout == layout:
        return subject
    return RandomCheckpoint.of(replace(config, layout=layout), subject.name, device=device)


def endless(
    engine: Engine, sampler: Sampler, *, batch: int = 1, decoder: Decoder | None = None
) -> Iterator[Chunk]:
    """A rollout of `batch` videos that never ends: each `next` makes a chunk."""
    prompts = FixedPrompts(*[PROMPT] * batch)
    decode = decoder or NoDecoder()
    return rollout(engine, decode, prompts, sampler, seeds=range(batch), chunks=ENDLESS)


def steady(engine: Engine, sampler: Sampler, *, batch: int = 1, graphs: bool = True) -> Callable[[], Tensor]:
    """A rollout as `steady_rollout` makes it.

    Each call makes a chunk, commits it and returns its latents [B, z, F, h, w].
    """
    videos = steady_rollout(engine, sampler, batch=batch, graphs=graphs)

    def chunk() -> Tensor:
        latents = videos.denoise()
        videos.update_cache()
        return latents

    return chunk


def steady_rollout(engine: Engine, sampler: Sampler, *, batch: int = 1, graphs: bool = True) -> Rollout:
    """A rollout of `batch` videos whose window is full: of noise, and of the two chunks made after it.

    Without `graphs`, a GPU is given every operation by itself.
    """
    prompts = FixedPrompts(*[PROMPT] * batch)
    videos = Rollout(engine, prompts, sampler, seeds=range(batch), graphs=graphs)
    # Filling chunk by chunk would take as long as the measurement; a full window is only data.
    videos.number = filling(engine.config)
    videos.frame = engine.cache_spec.chunks.start(videos.number)
    _draw(videos.buffers.cache, engine)
    for _ in range(2):  # not timed: the prompt is encoded and graphs are captured
        videos.denoise()
        videos.update_cache()
    return videos


def _draw(cache: Tensor, engine: Engine) -> None:
    """Fill `cache` with entries of noise, in the form in which `engine` caches them."""
    generator = torch.Generator(engine.device).manual_seed(0)
    if engine.cache_dtype == engine.dtype:
        cache.normal_(generator=generator)
        return
    assert isinstance(engine, EagerEngine)  # no other one has a cache of another type
    shape = CacheSpec.of(engine.config).shape(cache.shape[1])
    entries = torch.randn(shape, generator=generator, dtype=engine.dtype, device=engine.device)
    cache.copy_(engine.as_cached(entries))


def filling(config: ModelConfig) -> int:
    """Chunks until the window is full: from then on every chunk costs the same."""
    spec = CacheSpec.of(config)
    return spec.chunks.count(spec.slots)
