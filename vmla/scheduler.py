"""Flow matching: noise schedules with shift, and the two ways down them.

x_t = (1 - sigma) x0 + sigma eps, the model gives v = eps - x0, and its timestep is 1000 sigma.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from plugins.errors import UserError

TIMESTEPS = 1000
"""The model's timestep is this times sigma, as in Wan and in diffusers' flow-matching schedulers."""
NEWER_SETTINGS = ("timestep_list", "guidance_scale", "negative_prompt", "opening")
"""Settings newer than the first models' files, which are only written where they differ from the default."""


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """s sigma / (1 + (s - 1) sigma): more of the schedule at high noise for s > 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_t = (1 - sigma) x0 + sigma eps; sigma broadcasts against both."""
    return (1 - sigma) * clean + sigma * noise


def guided(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """u + w (c - u): 1 is no guidance (classifier-free guidance as samplers state it, arXiv 2207.12598)."""
    return unconditional + weight * (conditional - unconditional)


def keyed_noise(shape: tuple[int, ...] | torch.Size, *, seed: int, chunk: int, step: int) -> Tensor:
    """Standard normal float32 noise that depends on its key alone.

    Always drawn on the CPU, so that a seed means the same video on every device, whatever was
    drawn, resumed or skipped before.
    """
    digest = hashlib.blake2b(f"{seed}/{chunk}/{step}".encode(), digest_size=8).digest()
    # Hashed, so that neighbouring keys give unrelated seeds; shifted into the 63 bits of a positive seed.
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.randn(shape, generator=generator)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a chunk is denoised: the steps from pure noise to x0.

    `euler` follows the velocity from each sigma to the next. `renoise`, for distilled few-step
    models, goes to x0 at each step and back up with fresh noise (Self-Forcing's list warped by
    the shift, [1000, 750, 500, 250]).
    """

    kind: Literal["euler", "renoise"] = "renoise"
    steps: int = 4
    shift: float = 5.0
    timestep_list: tuple[float, ...] = ()
    """Timesteps that the model was distilled for, from 1000 downwards; empty means an even schedule. The
    sigma of each is that of the nearest of 1000 timesteps that are even before the shift, as in CausVid's
    code."""
    guidance_scale: float = 1.0
    """w of classifier-free guidance; at any other than 1, each step takes a second pass."""
    negative_prompt: str | None = None
    """Prompt of that second pass; None is the zero embedding that training uses where it drops a prompt."""
    opening: Sampler | None = None
    """Sampler of the first chunk of each prompt, where that differs: it alone decides what is seen, and the
    chunks that follow can look at it. It takes this sampler's negative prompt."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "timestep_list", tuple(self.timestep_list))  # of JSON, it is a list
        if self.kind not in ("euler", "renoise"):
            raise UserError(f"no such sampler: {self.kind}; use euler or renoise")
        if type(self.steps) is not int or not 1 <= self.steps <= TIMESTEPS:
            raise UserError(f"{self.steps} denoising steps; use 1 to {TIMESTEPS}")
        if not 0 < self.shift < math.inf:
            raise UserError(f"the shift is {self.shift}; use a positive number, 1 for an even schedule")
        if not 0 <= self.guidance_scale < math.inf:
            raise UserError(f"guidance_scale is {self.guidance_scale}; use 1 for none, or more")
        if self.timestep_list:
            self._check_list()
        if self.negative_prompt is not None and not self.negative_prompt.strip():
            raise UserError("the negative prompt is empty; leave it out for none")
        if self.opening is not None and (self.opening.opening or self.opening.negative_prompt is not None):
            raise UserError("an opening's sampler has neither an opening nor a negative prompt of its own")

    def _check_list(self) -> None:
        told = self.timestep_list
        if len(told) != self.steps:
            raise UserError(
                f"{self.steps} steps, but this model has {len(told)} timesteps of its own: {told}"
            )
        if not all(above > below > 0 for above, below in zip((TIMESTEPS + 1, *told), told, strict=False)):
            raise UserError(f"timesteps {told} do not fall from {TIMESTEPS} towards 0")

    def settings(self) -> dict[str, Any]:
        """The settings as JSON values; of `NEWER_SETTINGS` those that differ from their defaults."""
        values = asdict(self)
        newer = {field.name: field.default for field in fields(self) if field.name in NEWER_SETTINGS}
        values = {key: value for key, value in values.items() if key not in newer or value != newer[key]}
        if self.opening is not None:
            values["opening"] = self.opening.settings()
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def of_chunk(self, *, opens: bool) -> Sampler:
        """The sampler of a chunk, which has no opening itself; `opens`: the chunk is a prompt's first."""
        opening, usual = self.of_chunks
        return opening if opens else usual

    @cached_property
    def of_chunks(self) -> tuple[Sampler, Sampler]:
        """The samplers of a prompt's first chunk and of those that follow, alike without an opening."""
        if self.opening is None:
            return self, self
        return replace(self.opening, negative_prompt=self.negative_prompt), replace(self, opening=None)

    def with_steps(self, steps: int) -> Sampler:
        """This sampler with `steps` steps for every chunk, the first of a prompt included."""
        opening = None if self.opening is None else replace(self.opening, steps=steps)
        return replace(self, steps=steps, opening=opening)

    def with_guidance(self, weight: float) -> Sampler:
        """This sampler with guidance `weight` for every chunk."""
        opening = None if self.opening is None else replace(self.opening, guidance_scale=weight)
        return replace(self, guidance_scale=weight, opening=opening)

    @property
    def guided(self) -> bool:
        """Whether the steps of some chunk take a second pass, under the negative prompt."""
        return any(one.guidance_scale != 1 for one in self.of_chunks)

    @property
    def passes(self) -> int:
        """Passes of the denoiser that make a usual chunk, without the clean pass that fills the cache."""
        return self.steps * (1 if self.guidance_scale == 1 else 2)

    def sigmas(self) -> Tensor:
        """[steps + 1] float32 from 1 down to 0: linspace without its end, shifted, then 0."""
        if self.timestep_list:
            table = shifted(torch.linspace(1, 0, TIMESTEPS + 1, dtype=torch.float64)[:-1], self.shift)
            told = torch.tensor(self.timestep_list, dtype=torch.float64) / TIMESTEPS
            nearest = (table[None] - told[:, None]).abs().argmin(dim=1)
            return torch.cat([table[nearest], table.new_zeros(1)]).float()
        even = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        return shifted(even, self.shift).float()

    @cached_property
    def _levels(self) -> tuple[float, ...]:
        """`sigmas` as Python floats, so that no step reads a number back from a device."""
        return tuple(self.sigmas().tolist())

    def timesteps(self) -> Tensor:
        """[steps] float32: the timestep that the model is conditioned on at each step."""
        if self.timestep_list:
            return torch.tensor(self.timestep_list, dtype=torch.float32)
        return self.sigmas()[:-1] * TIMESTEPS

    def step(self, latents: Tensor, velocity: Tensor, step: int, noise: Tensor | None) -> Tensor:
        """The latents after step number `step`, in float32.

        `noise` is needed if `needs_noise` says so: fresh for each step that re-noises.
        """
        sigma, below = self._levels[step : step + 2]
        latents, velocity = latents.float(), velocity.float()
        if self.kind == "euler":
            return latents + (below - sigma) * velocity
        clean = latents - sigma * velocity
        return clean if noise is None else (1 - below) * clean + below * noise.float()

    def needs_noise(self, step: int) -> bool:
        """Whether step number `step` ends with fresh noise."""
        return self.kind == "renoise" and step + 1 < self.steps
