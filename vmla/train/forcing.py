"""Chunk-causal teacher forcing as a rollout: the very step, cache and window of inference.

Each chunk is denoised from a random noise level with true chunks before it in the cache, then a
clean pass commits it. So the model trains on exactly the windows and distances that it meets in a
video of any length. Two things make it robust to its own mistakes: the committed chunk carries some
noise, and in part of the batch it is the model's own estimate instead of the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vmla.cache import CacheLayout
from vmla.sampler import TIMESTEPS, add_noise, shifted

Step = Callable[..., tuple[Tensor, Tensor]]
"""`VideoMLA.forward`, in whatever precision."""


@dataclass(frozen=True, kw_only=True)
class Forcing:
    """How noise is put on what is predicted and on what is remembered."""

    shift: float = 2.0
    """Of the noise levels drawn for the predicted chunks."""
    copies: int = 2
    """Noise levels tried for each chunk and clip at once."""
    context_noise: float = 0.3
    """Largest sigma on a committed chunk."""
    own_share: float = 0.5
    """Share of committed chunks that are the model's own estimate."""
    own_sigma: float = 0.7
    """The noisiest level from which an estimate may be committed."""


def forcing_loss(
    step: Step,
    layout: CacheLayout,
    latents: Tensor,
    text_kv: Tensor,
    numbers: Sequence[int],
    forcing: Forcing,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the velocity over all predicted chunks of a teacher-forced rollout.

    Args:
        step: the denoiser's forward.
        layout: of its cache.
        latents: [B, z, F * len(numbers), h, w], the true chunks one after the other.
        text_kv: [L, 2, B, tokens, D].
        numbers: the chunk numbers that they stand for. They start at 0 and may jump once, which
            shows the model a sink as old as a long rollout has; the first chunk after a jump has
            lost its history and is committed without being predicted.
        forcing: how noise is drawn.
        generator: where noise is drawn from.
    """
    cache = layout.allocate(latents.shape[0], dtype=text_kv.dtype, device=latents.device)
    text_copies = torch.cat([text_kv] * forcing.copies, dim=2)
    losses = []
    for clean, number, before in zip(latents.chunk(len(numbers), 2), numbers, [-1, *numbers], strict=False):
        slots = remembered(layout, number, numbers)
        positions = (slots.to(latents.device), layout.chunk_index(number).to(latents.device))
        estimate, trusted = clean, torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        if number == before + 1:
            loss, estimate, trusted = _predict(step, clean, text_copies, cache, positions, forcing, generator)
            losses.append(loss)
        if number == numbers[-1]:
            break  # nothing will look at it
        context = _context(clean, estimate, trusted, forcing, generator)
        quiet = torch.zeros(clean.shape[0], clean.shape[2], device=clean.device)
        _, entries = step(context, quiet, text_kv, cache, *positions)
        cache = layout.commit(cache, entries, number)
    return torch.stack(losses).mean()


def remembered(layout: CacheLayout, number: int, numbers: Sequence[int]) -> Tensor:
    """`slot_index` of chunk `number` when only the chunks in `numbers` were ever made; a jump forgets.

    Only the sink survives a jump, as it is all that survives in a rollout of that length.
    """
    start = max(n for n in numbers if n <= number and n - 1 not in numbers) * layout.chunk
    frames = layout.frame_in_slot(number)
    sink = [frame < layout.sink and frame // layout.chunk in numbers for frame in frames]
    kept = [frame >= start or old for frame, old in zip(frames, sink, strict=True)]
    return torch.where(torch.tensor(kept), layout.slot_index(number), -1)


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
    target = torch.cat([clean] * copies)
    # Stratified: the copies of one clip lie in different parts of the schedule.
    offsets = torch.arange(copies).repeat_interleave(batch)
    uniform = (torch.rand(batch, generator=generator).repeat(copies) + offsets / copies) % 1
    sigma = shifted(uniform, forcing.shift).to(clean.device)
    noise = torch.randn(target.shape, generator=generator).to(clean.device)
    level = sigma[:, None, None, None, None]
    noisy = add_noise(target, noise, level)
    timestep = (sigma * TIMESTEPS)[:, None].expand(-1, clean.shape[2])
    velocity, _ = step(noisy, timestep, text_kv, torch.cat([cache] * copies, dim=1), *positions)
    error = velocity.float() - (noise - target)
    estimate = (noisy - level * velocity.float()).detach()
    return error.square().mean(), estimate[:batch], sigma[:batch] < forcing.own_sigma


def _context(
    clean: Tensor, estimate: Tensor, trusted: Tensor, forcing: Forcing, generator: torch.Generator
) -> Tensor:
    """What is committed: the truth under a little noise, or for some clips the model's estimate."""
    sigma = forcing.context_noise * torch.rand(len(clean), generator=generator)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    noisy = add_noise(clean, noise, sigma[:, None, None, None, None].to(clean.device))
    own = trusted & (torch.rand(len(clean), generator=generator) < forcing.own_share).to(clean.device)
    return torch.where(own[:, None, None, None, None], estimate, noisy)
