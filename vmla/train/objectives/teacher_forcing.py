"""Chunk-causal teacher forcing as a rollout: the very step, cache and window of inference.

Each chunk is denoised from a random noise level with true chunks before it in the cache, then a
clean pass commits it. So the model trains on exactly the windows and distances that it meets in a
video of any length. Two things make it robust to its own mistakes: the committed chunk carries some
noise, and in part of the batch it is the model's own estimate instead of the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vmla.cache import CacheSpec
from vmla.scheduler import TIMESTEPS, add_noise, shifted
from vmla.train.objectives.noise import normal, uniform
from vmla.train.objectives.packed_clip import Pass, Step, packed_velocity, predicted, remembered


@dataclass(frozen=True, kw_only=True)
class Forcing:
    """How noise is put on the predicted chunks and on those in the cache."""

    shift: float = 2.0
    """Shift of the noise levels that are drawn for the predicted chunks; see `vmla.scheduler.shifted`."""
    copies: int = 2
    """Noise levels tried for each chunk and clip at once."""
    context_noise: float = 0.3
    """Largest sigma on a committed chunk."""
    own_share: float = 0.5
    """Share of committed chunks that are the model's own estimate."""
    own_sigma: float = 0.7
    """The noisiest level from which an estimate may be committed."""

    @property
    def fixed(self) -> bool:
        """Whether all committed chunks are known before any is predicted, and each is predicted once."""
        return self.own_share == 0 and self.copies == 1


def forcing_loss(
    step: Step,
    spec: CacheSpec,
    latents: Tensor,
    text_kv: Tensor,
    numbers: Sequence[int],
    forcing: Forcing,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the velocity over all predicted chunks of a teacher-forced rollout.

    Args:
        step: the denoiser's forward.
        spec: geometry of the cache.
        latents: [B, z, frames, h, w], the true chunks one after the other.
        text_kv: [L, 2, B, tokens, D].
        numbers: the chunk numbers that they stand for. They start at 0 and may jump once, which
            shows the model a sink as old as a long rollout has; the first chunk after a jump has
            lost its history and is committed without being predicted.
        forcing: how noise is drawn.
        generator: where noise is drawn from.
    """
    cache = spec.allocate(latents.shape[0], dtype=text_kv.dtype, device=latents.device)
    text_copies = torch.cat([text_kv] * forcing.copies, dim=2)
    losses, sizes, chunks = [], [], spec.chunks
    for clean, number, before in zip(chunks.split(latents, numbers), numbers, [-1, *numbers], strict=False):
        start, device = chunks.start(number), latents.device
        slots, own = remembered(spec, number, numbers), spec.chunk_index(start, clean.shape[2])
        positions = (slots.to(device), own.to(device))
        estimate, trusted = clean, torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        if number == before + 1:
            loss, estimate, trusted = _predict(step, clean, text_copies, cache, positions, forcing, generator)
            losses.append(loss)
            sizes.append(clean.shape[2])
        if number == numbers[-1]:
            break  # no later chunk attends to the last one
        context = _context(clean, estimate, trusted, forcing, generator)
        quiet = torch.zeros(clean.shape[0], clean.shape[2], device=clean.device)
        _, entries = step(context, quiet, text_kv, cache, *positions)
        cache = spec.commit(cache, entries, start)
    usual = sum(sizes) / len(sizes)  # every frame counts alike, in a short first chunk too
    return torch.stack([loss * (size / usual) for loss, size in zip(losses, sizes, strict=True)]).mean()


def forcing_loss_at_once(
    run: Pass,
    spec: CacheSpec,
    latents: Tensor,
    text_kv: Tensor,
    numbers: Sequence[int],
    forcing: Forcing,
    generator: torch.Generator,
) -> Tensor:
    """`forcing_loss` in one pass over the clip, since no committed chunk depends on a prediction.

    Args:
        run: one pass over a sequence, `VideoMLA.forward_packed`.
        spec: geometry of the cache, which decides the windows.
        latents, text_kv, numbers, generator: see `forcing_loss`, which draws the same noise.
        forcing: with one copy and no estimates (`Forcing.fixed`).
    """
    wanted = predicted(numbers)
    drawn, contexts, targets = [], [], []
    for clean, number in zip(spec.chunks.split(latents, numbers), numbers, strict=True):
        if number in wanted:
            drawn.append(_noised(clean, forcing, generator))
            targets.append(clean)
        if number != numbers[-1]:
            none = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
            contexts.append(_context(clean, clean, none, forcing, generator))
    levels = [sigma[:, None].expand(-1, noisy.shape[2]) for sigma, _, noisy in drawn]
    _, noise, noisy = zip(*drawn, strict=True)
    timestep = torch.cat(levels, dim=1) * TIMESTEPS
    context = torch.cat([latents[:, :, :0], *contexts], dim=2)
    velocity = packed_velocity(run, spec, text_kv, numbers, torch.cat(noisy, dim=2), context, timestep)
    return (velocity - (torch.cat(noise, dim=2) - torch.cat(targets, dim=2))).square().mean()


def _predict(
    step: Step,
    clean: Tensor,
    text_kv: Tensor,
    cache: Tensor,
    positions: tuple[Tensor, Tensor],
    forcing: Forcing,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss over all copies; of the first copy the estimates [B, ...] and which were made at low noise."""
    copies, batch = forcing.copies, len(clean)
    sigma, noise, noisy = _noised(clean, forcing, generator)
    timestep = (sigma * TIMESTEPS)[:, None].expand(-1, clean.shape[2])
    velocity, _ = step(noisy, timestep, text_kv, torch.cat([cache] * copies, dim=1), *positions)
    error = velocity.float() - (noise - torch.cat([clean] * copies))
    estimate = (noisy - sigma[:, None, None, None, None] * velocity.float()).detach()
    return error.square().mean(), estimate[:batch], sigma[:batch] < forcing.own_sigma


def _noised(clean: Tensor, forcing: Forcing, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noise levels [copies * B], noise and noisy latents of all copies of `clean` [B, z, F, h, w]."""
    copies, batch = forcing.copies, len(clean)
    target = torch.cat([clean] * copies)
    # Stratified: the copies of one clip lie in different parts of the schedule.
    offsets = torch.arange(copies, device=clean.device).repeat_interleave(batch)
    drawn = (uniform(batch, generator, clean.device).repeat(copies) + offsets / copies) % 1
    sigma = shifted(drawn, forcing.shift)
    noise = normal(target.shape, generator, clean.device)
    return sigma, noise, add_noise(target, noise, sigma[:, None, None, None, None])


def _context(
    clean: Tensor, estimate: Tensor, trusted: Tensor, forcing: Forcing, generator: torch.Generator
) -> Tensor:
    """The chunk to commit: the truth under a little noise, or for some clips the model's estimate."""
    sigma = forcing.context_noise * uniform(len(clean), generator, clean.device)
    noise = normal(clean.shape, generator, clean.device)
    noisy = add_noise(clean, noise, sigma[:, None, None, None, None])
    own = trusted & (uniform(len(clean), generator, clean.device) < forcing.own_share)
    return torch.where(own[:, None, None, None, None], estimate, noisy)
