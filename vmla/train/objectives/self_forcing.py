"""Self-rollouts: the student makes a video as at inference, and learns from one step of each chunk.

Steps before the exit run without gradients; the exit step's x0 is the chunk. A clean pass without
gradients commits it, so that no gradient crosses chunks through the cache (Self-Forcing).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vmla.scheduler import Sampler, guided, keyed_noise
from vmla.train.objectives.cached_rollout import CachedRollout


def self_rollout(
    rollout: CachedRollout,
    sampler: Sampler,
    picture: tuple[int, int, int],
    *,
    chunks: int,
    exit_step: int | None,
    seeds: Sequence[int],
    learned: int | None = None,
    given: Tensor | None = None,
    negative_text_kv: Tensor | None = None,
) -> Tensor:
    """Latents [B, z, frames, h, w] that the student made, as a rollout at inference would.

    Args:
        rollout: of the student, with an empty cache.
        sampler: its opening makes the first chunk that is not given only if that is number 0.
        picture: [z, h, w] of a latent frame.
        chunks: how many.
        exit_step: the step whose x0 becomes the chunk, the same for all chunks; only of a `renoise` sampler.
            None takes all steps of each chunk's sampler.
        seeds: one for each video, as `vmla-run --seed`.
        learned: how many of the last chunks carry gradients; all if not given.
        given: [B, z, frames, h, w] of the first chunks, which are committed as they are instead of being
            made.
        negative_text_kv: [L, 2, B, tokens, D] of the negative prompt, for a guided sampler's second pass.
    """
    _check_exit(sampler, exit_step)
    made, device, lengths = [], rollout.text_kv.device, rollout.cache_spec.chunks
    channels, *size = picture

    def noise(number: int, step: int) -> Tensor:
        shape = (channels, lengths.length(number), *size)
        drawn = [keyed_noise(shape, seed=seed, chunk=number, step=step) for seed in seeds]
        return torch.stack(drawn).to(device)

    begun = () if given is None else lengths.split(given, range(lengths.count(given.shape[2])))
    for number, latents in enumerate(begun):
        made.append(latents)
        with torch.no_grad():
            rollout.commit(latents, number)
    for number in range(len(made), chunks):
        learns = torch.is_grad_enabled() and number >= chunks - (chunks if learned is None else learned)
        latents, chosen = noise(number, 0), sampler.of_chunk(opens=number == 0)
        last = chosen.steps - 1 if exit_step is None else exit_step
        for step in range(last + 1):
            sigma = chosen.sigmas()[step].expand(len(seeds)).to(device)
            with torch.set_grad_enabled(learns and step == last):
                velocity = _velocity(rollout, latents, sigma, number, chosen, negative_text_kv)
                fresh = noise(number, step + 1) if step < last else None
                latents = chosen.step(latents, velocity, step, fresh)
        made.append(latents)
        with torch.no_grad():
            rollout.commit(latents, number)
    return torch.cat(made, dim=2)


def _check_exit(sampler: Sampler, exit_step: int | None) -> None:
    """Refuse an exit of a sampler that makes some chunk otherwise than the rest, or has no such step."""
    if exit_step is None:
        return
    if sampler.opening is not None:
        raise ValueError("a sampler with an opening takes all of its steps")
    last = sampler.steps - 1
    first = 0 if sampler.kind == "renoise" else last
    if not first <= exit_step <= last:
        raise ValueError(f"this sampler exits after one of its steps {first} to {last}")


def _velocity(
    rollout: CachedRollout,
    latents: Tensor,
    sigma: Tensor,
    number: int,
    sampler: Sampler,
    negative: Tensor | None,
) -> Tensor:
    """The velocity as in inference: the second pass, for guidance, attends to the same cache."""
    velocity = rollout.velocity(latents, sigma, number)
    if sampler.guidance_scale == 1:
        return velocity
    if negative is None:
        raise ValueError("a guided sampler needs the keys and values of its negative prompt")
    free = rollout.velocity(latents, sigma, number, text_kv=negative)
    return guided(velocity, free, sampler.guidance_scale)
