"""`vmla-export verify`: compares an engine with the eager float32 model, in one pass and in a rollout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

from runtime.engines.base import EagerEngine, Engine
from runtime.engines.compiled import CompiledEngine
from runtime.prompts.sources import FixedPrompts
from runtime.rollout.decoding import NoDecoder
from runtime.rollout.rollout import rollout
from vmla.scheduler import TIMESTEPS, Sampler
from vmla.transformer import StepInputs
from vmla.weights.checkpoint import Checkpoint

SINGLE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 3e-3, "fp8": 1e-1, "nvfp4": 4e-1}
"""Bounds on the relative error of one pass. Those of bf16 and fp16 are a few units of rounding (2^-8, 2^-11),
those of fp8 and nvfp4 four to five times the error of the shipped model's velocity (fp8 in ONNX Runtime:
0.024, and 0.008 for entries; nvfp4 in PyTorch, because no runtime here has it: 0.083)."""

ROLLOUT = {"fp32": 1e-4, "bf16": 3e-1, "fp16": 2e-2, "fp8": 5e-1, "nvfp4": 8e-1}
"""Bounds on the relative error of a chunk in a rollout, where the errors of all earlier steps and chunks add
up. After 20 chunks the shipped model shows 1e-5 in fp32, 0.013 in fp16, 0.14 in bf16 and 0.29 in fp8, where
an object has moved differently; two unrelated videos would differ by 1 or more."""

WORDS = ("star", "ring", "square", "cross")


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Relative errors |engine - eager| / |eager| (norms over whole tensors)."""

    precision: str
    single: dict[str, float]
    """Errors of one pass through a half-filled cache, by output."""
    chunks: list[float]
    """Errors of the latents of each chunk of a rollout."""

    @property
    def worst_chunk(self) -> int:
        """The chunk with the largest error; NaN counts as the largest."""
        return max(range(len(self.chunks)), key=lambda n: (self.chunks[n] != self.chunks[n], self.chunks[n]))

    @property
    def holds(self) -> bool:
        """Whether every error is within its bound."""
        single = all(error <= SINGLE[self.precision] for error in self.single.values())
        return single and all(error <= ROLLOUT[self.precision] for error in self.chunks)

    def lines(self) -> list[str]:
        """The result as lines of text."""
        worst = self.worst_chunk
        return [
            *(f"one pass, {name}: {error:.2e}" for name, error in self.single.items()),
            *(f"chunk {number}: {error:.2e}" for number, error in enumerate(self.chunks)),
            f"worst chunk: {worst} with {self.chunks[worst]:.2e}",
            f"bounds in {self.precision}: {SINGLE[self.precision]:g} for one pass, "
            f"{ROLLOUT[self.precision]:g} for a chunk; {'they hold' if self.holds else 'NOT met'}",
        ]


def verify(engine: CompiledEngine, checkpoint: Checkpoint, *, chunks: int) -> Verification:
    """Errors of `engine` against the eager model in one pass and in a rollout of `chunks` chunks.

    Both run on the same noise and prompts.
    """
    eager = EagerEngine(
        checkpoint.transformer(), checkpoint.text(), device=engine.device, dtype=torch.float32
    )
    batch = engine.manifest.batch
    sampler = checkpoint.sampler()
    pairs = zip(
        latents_of(engine, sampler, batch, chunks), latents_of(eager, sampler, batch, chunks), strict=True
    )
    return Verification(
        precision=engine.manifest.precision,
        single=single_pass(engine, eager, batch),
        chunks=[relative_error(*pair) for pair in pairs],
    )


def single_pass(engine: Engine, eager: Engine, batch: int) -> dict[str, float]:
    """Relative errors of velocity and entries in one pass of the second chunk; see `second_chunk`."""
    text = prompts(batch)
    want, got = (
        one.step(second_chunk(eager, batch, one.encode_prompt(text), dtype=one.dtype))
        for one in (eager, engine)
    )
    return {name: relative_error(a, b) for name, a, b in zip(("velocity", "entries"), got, want, strict=True)}


def second_chunk(
    eager: Engine, batch: int, text_kv: Tensor, *, dtype: torch.dtype = torch.float32
) -> StepInputs:
    """The inputs of a pass of the second chunk, the same at each call, with a cache in `dtype`.

    The cache holds noise, and NaN in its empty slots, which must not matter.
    """
    config, spec = eager.config, eager.cache_spec
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(eager.device)

    latents = draw(batch, config.in_channels, config.chunk, config.sample_height, config.sample_width)
    timestep = torch.full((batch, config.chunk), TIMESTEPS / 2, device=eager.device)
    second = spec.chunk  # the first latent frame of the second chunk
    slots = spec.slot_index(second).to(eager.device)
    own = spec.chunk_index(second, spec.chunk).to(eager.device)
    empty = (slots < 0).repeat_interleave(spec.tokens_per_frame)[:, None]
    cache = draw(*spec.shape(batch)).masked_fill(empty, float("nan"))
    return StepInputs(latents, timestep, text_kv, cache.to(dtype), slots, own)


def latents_of(engine: Engine, sampler: Sampler, batch: int, chunks: int) -> Iterator[Tensor]:
    """The clean latents [B, F, z, h, w] of each chunk of a rollout, not decoded."""
    made = rollout(
        engine, NoDecoder(), FixedPrompts(*prompts(batch)), sampler, seeds=range(batch), chunks=chunks
    )
    return (chunk.frames for chunk in made)


def prompts(batch: int) -> list[str]:
    """A prompt for each video of a batch."""
    return [f"a red {word} on a navy background" for word, _ in zip(cycle(WORDS), range(batch), strict=False)]


def relative_error(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want| in float64."""
    difference = got.double() - want.double()
    return float(difference.norm() / want.double().norm())
