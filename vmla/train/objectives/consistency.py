"""Causal consistency distillation: a few steps that agree with the teacher's many.

    x_t = (1 - sigma) x0 + sigma eps
    v = u + w (c - u)                           the teacher's velocity, guided
    x_s = x_t - (sigma_t - sigma_s) v           one step down the teacher's grid
    loss = | G(x_t, t) - stopgrad G_ema(x_s, s) |^2

Every network attends to its own entries of the clean chunks before. The stage of Causal Forcing
(arXiv 2602.02214) that VideoMLA uses as its second (arXiv 2605.30351, D.6).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plugins.errors import UserError
from vmla.scheduler import Sampler, add_noise, guided
from vmla.train.objectives.cached_rollout import CachedRollout, clip_velocity, level
from vmla.train.objectives.noise import normal


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """The teacher's grid of noise levels and its guidance."""

    grid: int = 48
    """Steps of the teacher from pure noise to x0."""
    shift: float = 5.0
    guidance: float = 3.0
    """w of classifier-free guidance; 1 needs no unconditional pass."""

    def __post_init__(self) -> None:
        if self.grid < 2:
            raise UserError(f"a grid of {self.grid} steps; use 2 or more")

    def sigmas(self) -> Tensor:
        """[grid] float32 from 1 down, without the end."""
        return Sampler(kind="euler", steps=self.grid, shift=self.shift).sigmas()[:-1]


@dataclass(frozen=True)
class Networks:
    """The three networks of the stage, each with its own cache."""

    student: CachedRollout
    target: CachedRollout
    """The student's exponential moving average, which the loss takes its target from."""
    teacher: CachedRollout
    free: CachedRollout | None
    """The teacher without its prompt; None where nothing is guided."""


def consistency_loss(
    networks: Networks, latents: Tensor, settings: Consistency, generator: torch.Generator
) -> Tensor:
    """The loss over all chunks of true latents [B, z, frames, h, w]; one noise level for each clip."""
    place = generator.device
    drawn = torch.randint(settings.grid - 1, (len(latents),), generator=generator, device=place)
    sigma, below = (settings.sigmas().to(place)[drawn + i].to(latents.device) for i in range(2))
    lengths = networks.student.cache_spec.chunks
    chunks = lengths.split(latents, range(lengths.count(latents.shape[2])))
    noise = torch.cat([normal(chunk.shape, generator, latents.device) for chunk in chunks], dim=2)
    noisy = add_noise(latents, noise, level(sigma))
    with torch.no_grad():
        velocity = teacher_velocity(networks, noisy, latents, sigma, settings.guidance)
        nearer = noisy - level(sigma - below) * velocity
        target = nearer - level(below) * clip_velocity(networks.target, nearer, latents, below)
    estimate = noisy - level(sigma) * clip_velocity(networks.student, noisy, latents, sigma)
    return (estimate - target).square().mean()


def teacher_velocity(
    networks: Networks, noisy: Tensor, clean: Tensor, sigma: Tensor, weight: float
) -> Tensor:
    """The teacher's velocities of a clip, guided where there are unconditional ones."""
    conditional = clip_velocity(networks.teacher, noisy, clean, sigma)
    if networks.free is None:
        return conditional
    return guided(conditional, clip_velocity(networks.free, noisy, clean, sigma), weight)
