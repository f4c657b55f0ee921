"""A rollout in training, with its cache: the window, the step and the commit of inference.

Nothing is written in place. A commit makes a new cache, so a pass that activation checkpointing runs
again in the backward pass sees the cache that it saw at first, evictions or not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vmla.cache import CacheSpec
from vmla.scheduler import TIMESTEPS
from vmla.train.objectives.packed_clip import Pass, Step, packed_velocity, predicted, remembered


class CachedRollout:
    """A network and the cache of a batch of videos that it rolls out."""

    def __init__(
        self,
        step: Step,
        spec: CacheSpec,
        text_kv: Tensor,
        numbers: Sequence[int] | None = None,
        *,
        forward_packed: Pass | None = None,
    ) -> None:
        """Start with an empty cache.

        Args:
            step: `VideoMLA.forward`, in the precision that the stage computes in.
            spec: geometry of its cache.
            text_kv: [L, 2, B, tokens, D].
            numbers: the chunks that will be committed, where they are not all from 0 on.
            forward_packed: `VideoMLA.forward_packed`, for clips that take one pass as a whole.
        """
        self.forward_packed = forward_packed
        self.step, self.cache_spec, self.text_kv, self.numbers = step, spec, text_kv, numbers
        self.cache = spec.allocate(text_kv.shape[2], dtype=text_kv.dtype, device=text_kv.device)

    def velocity(self, noisy: Tensor, sigma: Tensor, number: int, *, text_kv: Tensor | None = None) -> Tensor:
        """The velocity of chunk `number`, noisy [B, z, F, h, w] at sigma [B], in float32.

        `text_kv` [L, 2, B, tokens, D] is another text for this pass alone.
        """
        text_kv = self.text_kv if text_kv is None else text_kv
        timestep = (sigma * TIMESTEPS)[:, None].expand(-1, noisy.shape[2])
        velocity, _ = self.step(noisy, timestep, text_kv, self.cache, *self._window(number))
        return velocity.float()

    def commit(self, latents: Tensor, number: int) -> None:
        """Write chunk `number`, as `latents` [B, z, F, h, w], to the cache by a clean pass at t = 0."""
        still = latents.new_zeros(latents.shape[0], latents.shape[2])
        _, entries = self.step(latents, still, self.text_kv, self.cache, *self._window(number))
        self.cache = self.cache_spec.commit(self.cache, entries, self.cache_spec.chunks.start(number))

    def _window(self, number: int) -> tuple[Tensor, Tensor]:
        chunks, device = self.cache_spec.chunks, self.text_kv.device
        start = chunks.start(number)
        slots = self.cache_spec.slot_index(start)
        if self.numbers is not None:
            slots = remembered(self.cache_spec, number, self.numbers)
        return slots.to(device), self.cache_spec.chunk_index(start, chunks.length(number)).to(device)


def level(sigma: Tensor) -> Tensor:
    """sigma [B] as it multiplies latents [B, z, F, h, w]."""
    return sigma[:, None, None, None, None]


def clip_velocity(rollout: CachedRollout, noisy: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """Velocities of a whole clip [B, z, frames, h, w] at one sigma [B], each chunk after clean ones.

    A network whose chunk is the whole clip sees all of it in both directions. Chunks that have lost
    their history (`predicted`) are committed and left out of the result. A rollout with `forward_packed`
    takes one pass for all.
    """
    chunks = rollout.cache_spec.chunks
    numbers = rollout.numbers or range(chunks.count(clean.shape[2]))
    wanted, velocities = predicted(numbers), []
    loud, quiet = chunks.split(noisy, numbers), chunks.split(clean, numbers)
    if rollout.forward_packed is not None:
        chosen = torch.cat([x for number, x in zip(numbers, loud, strict=True) if number in wanted], dim=2)
        timestep = (sigma * TIMESTEPS)[:, None].expand(-1, chosen.shape[2])
        before = torch.cat([clean[:, :, :0], *quiet[:-1]], dim=2)
        return packed_velocity(
            rollout.forward_packed, rollout.cache_spec, rollout.text_kv, numbers, chosen, before, timestep
        )
    for number, x, before in zip(numbers, loud, quiet, strict=True):
        if number in wanted:
            velocities.append(rollout.velocity(x, sigma, number))
        if number != numbers[-1]:
            rollout.commit(before, number)
    return torch.cat(velocities, dim=2)
