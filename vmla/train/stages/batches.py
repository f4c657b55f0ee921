"""Which clips, and which of their chunks, a step of teacher forcing learns from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vmla.cache import ChunkLengths
from vmla.train.data.latents import LatentSet
from vmla.train.stages.denoiser_settings import DenoiserTraining


class Batch(NamedTuple):
    """Some chunks of some clips."""

    latents: Tensor
    """[B, z, frames, h, w] float32 of the chunks, one after the other."""
    text: Tensor
    """[B, text tokens, text width] float32."""
    numbers: list[int]
    """The chunks' numbers in a rollout."""
    labels: Tensor | None = None
    """[B, frames, places, numbers] float32 of `vmla.world.labels`, where the clips have them."""


def draw_batch(training: DenoiserTraining, data: LatentSet, chunks: ChunkLengths, step: int) -> Batch:
    """The batch of `step`, which (seed, step) alone decide."""
    rng = np.random.default_rng([training.seed, step, 3])
    if step < training.opening_steps or rng.random() < training.openings:
        batch = _openings(training, data, chunks.first, step, rng)
    else:
        batch = _rollouts(training, data, chunks, rng)
    if training.prompt_dropout == 0:
        return batch
    # After all other draws: clips are the same whatever is dropped.
    dropped = torch.from_numpy(rng.random(len(batch.text)) < training.prompt_dropout)
    batch.text[dropped] = 0
    return batch


def _openings(
    training: DenoiserTraining, data: LatentSet, chunk: int, step: int, rng: np.random.Generator
) -> Batch:
    """Any `chunk` frames of any clip, as if a video began there; at first of clips of one object alone."""
    count, choice, weights = training.opening_clips, torch.arange(len(data.latents)), _weights(training, data)
    if step < training.single_steps and data.objects is not None:
        choice, weights = (data.objects == 1).nonzero()[:, 0], None
    if weights is None:
        clips = choice[torch.from_numpy(rng.integers(len(choice), size=count))]
    else:
        clips = torch.from_numpy(rng.choice(len(choice), count, p=weights))
    starts = torch.from_numpy(rng.integers(data.latents.shape[2] // chunk, size=count)) * chunk
    frames = starts[:, None] + torch.arange(chunk)
    latents = data.latents[clips[:, None], :, frames].transpose(1, 2)
    labels = None if data.labels is None else data.labels[clips[:, None], frames].float()
    return Batch(latents=latents.float(), text=data.text[clips].float(), numbers=[0], labels=labels)


def _rollouts(
    training: DenoiserTraining, data: LatentSet, chunks: ChunkLengths, rng: np.random.Generator
) -> Batch:
    """Clips from their beginning on, or with a jump after their first chunk."""
    weights = _weights(training, data)
    # By weight a clip may come twice: of the rarer kind there may be fewer than a batch.
    again = weights is not None
    clips = torch.from_numpy(rng.choice(len(data.latents), training.clips, replace=again, p=weights))
    count = training.chunks
    last = chunks.number_of(data.latents.shape[2]) - (count - 1)
    start = int(rng.integers(2, last + 1)) if last > 1 and rng.random() < training.jumps else 1
    numbers = [0, *range(start, start + count - 1)]
    frames = torch.tensor(chunks.frames_of(numbers))
    latents = data.latents[clips][:, :, frames].float()
    labels = None if data.labels is None else data.labels[clips][:, frames].float()
    return Batch(latents=latents, text=data.text[clips].float(), numbers=numbers, labels=labels)


def _weights(training: DenoiserTraining, data: LatentSet) -> np.ndarray | None:
    """How likely each clip is to be drawn, so that `pairs` of them show two objects; None: all alike."""
    if training.pairs is None or data.objects is None:
        return None
    pairs = data.objects.numpy() == 2
    if pairs.all() or not pairs.any():
        return None
    return np.where(pairs, training.pairs / pairs.sum(), (1 - training.pairs) / (~pairs).sum())
