"""Clips that the averaged weights make while they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmla.cache import CacheSpec
from vmla.config import ModelConfig
from vmla.scheduler import Sampler
from vmla.text import TextEncoder
from vmla.train.loop.loop import Watcher
from vmla.train.loop.parallel import whole
from vmla.train.monitoring.contact_sheet import write_strip
from vmla.train.objectives.alignment import without_aligner
from vmla.train.objectives.cached_rollout import CachedRollout
from vmla.train.objectives.self_forcing import self_rollout
from vmla.train.stages.denoiser import narrowed
from vmla.transformer import VideoMLA
from vmla.vae import Codec

PROMPTS = ("a red star bouncing on a navy background", "a yellow ring orbiting on a black background")
CHUNKS = 4
"""Chunks of a sample clip, some 3 s: enough to see motion, and the first commits."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Every so many steps, a strip of pictures of the same prompts and seeds, in `folder`/samples."""

    folder: Path
    every: int
    """Steps between two sets of clips."""
    config: ModelConfig
    codec: Codec
    text: Tensor
    """[prompts, text tokens, text width]"""
    sampler: Sampler
    dtype: torch.dtype
    negative: Tensor | None = None
    """[text tokens, text width] of the negative prompt, for a guided sampler's second pass."""
    device: torch.device = torch.device("cpu")

    def __call__(self, name: str, line: dict[str, Any], average: dict[str, Tensor]) -> None:
        """The first process makes the clips; the others are `joining` it."""
        if line["step"] % self.every == 0:
            frames = self.codec.decode(self.latents(without_aligner(whole(average))).cpu())[0]
            write_strip(frames, self.folder / "samples" / f"{name}-{line['step']:07d}.png")

    @torch.no_grad()
    def latents(self, tensors: dict[str, Tensor]) -> Tensor:
        """Latents [prompts, z, frames, h, w] that a model with these weights makes."""
        config, spec, device = self.config, CacheSpec.of(self.config), self.device
        with torch.random.fork_rng(
            devices=[]
        ):  # VideoMLA draws random weights: the training's generator must not notice
            model = VideoMLA(config)
        model.load_state_dict({**model.state_dict(), **tensors})
        step, encode_text, _ = narrowed(model.to(device).eval(), self.dtype)
        negative = None if self.negative is None else self.negative.expand_as(self.text)
        picture = (config.in_channels, config.sample_height, config.sample_width)
        return self_rollout(
            CachedRollout(step, spec, encode_text(self.text.to(device))), self.sampler, picture,
            chunks=CHUNKS, exit_step=None, seeds=range(len(self.text)),
            negative_text_kv=None if negative is None else encode_text(negative.to(device)),
        )  # fmt: skip


def joining(every: int) -> Watcher:
    """A watcher for the other processes: it gathers their part of the average while the first makes clips."""

    def watch(name: str, line: dict[str, Any], average: dict[str, Tensor]) -> None:
        if line["step"] % every == 0:
            whole(average)

    return watch


@torch.no_grad()
def embedded(text: TextEncoder, prompts: Sequence[str | None] = PROMPTS) -> Tensor:
    """Embeddings of the sample prompts [prompts, text tokens, text width]."""
    return text(list(prompts)).float().cpu()
