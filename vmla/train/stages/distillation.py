"""Stages `consistency` and `distribution`: from a teacher's many steps to a few of the student's own."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plugins.errors import UserError
from vmla.cache import CacheSpec
from vmla.scheduler import Sampler, add_noise
from vmla.train.data.latents import LatentSet
from vmla.train.loop.parallel import Calls, Parallel
from vmla.train.loop.throughput import Meter
from vmla.train.objectives.cached_rollout import CachedRollout, clip_velocity, level
from vmla.train.objectives.consistency import Consistency, Networks, consistency_loss
from vmla.train.objectives.dmd import (
    critic_loss,
    generator_loss,
    guided_beyond,
    matching_gradient,
    score_sigma,
)
from vmla.train.objectives.noise import normal, seeded, uniform
from vmla.train.objectives.packed_clip import predicted
from vmla.train.objectives.self_forcing import self_rollout
from vmla.train.optim.optimizers import DistilSchedule, Optimizers
from vmla.train.optim.precision import Precision, resolve
from vmla.train.stages.denoiser import narrowed
from vmla.transformer import VideoMLA, compile_blocks


@dataclass(frozen=True, kw_only=True)
class ConsistencyTraining:
    """Settings of consistency distillation, the second stage: objective, schedule and batch."""

    schedule: DistilSchedule
    consistency: Consistency
    clips: int = 1
    """Clips of a micro-batch, that is of one process and one pass."""
    chunks: int = 7
    precision: Precision = "auto"
    compiled: bool = False
    """As `DenoiserTraining.compiled`, for all networks."""
    at_once: bool = False
    """As `DenoiserTraining.at_once`, for all passes over true frames."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class DistributionTraining:
    """Settings of distribution matching distillation."""

    schedule: DistilSchedule
    critic: DistilSchedule
    """Rates of the critic; how many steps it makes follows from those of the generator."""
    critic_updates: int = 5
    """Updates of the critic for each update of the generator."""
    sampler: Sampler
    """The student's sampler, in whose steps it learns to make chunks."""
    guidance: float = 3.0
    """g of the real score, c + g (c - u); 0 needs no unconditional pass."""
    score_shift: float = 5.0
    whole_scores: bool = False
    """Teacher and critic see all frames of a clip in both directions, as Wan does, instead of causally."""
    clips: int = 1
    chunks: int = 7
    """Chunks that are scored and learn."""
    prelude: int = 0
    """The most chunks made before those: with them, long videos (streaming long tuning)."""
    precision: Precision = "auto"
    compiled: bool = False
    """As `DenoiserTraining.compiled`, for all networks."""
    at_once: bool = False
    """As `DenoiserTraining.at_once`, for the scores."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.whole_scores and self.prelude:
            raise UserError("scores of whole clips know no frames before them; use prelude 0")


class Batches:
    """Clips, or prompts alone, drawn by (seed, draw) and nothing else."""

    def __init__(self, data: LatentSet, clips: int, seed: int, device: torch.device) -> None:
        self.data, self.clips, self.seed, self.device = data, clips, seed, device

    def text(self, draw: int, key: int) -> tuple[Tensor, Tensor]:
        """The clips' numbers and their text embeddings [B, tokens, width]."""
        rng = np.random.default_rng([self.seed, draw, key])
        chosen = torch.from_numpy(rng.integers(len(self.data.text), size=self.clips))
        return chosen, self.data.text[chosen].float().to(self.device)

    def video(self, draw: int, key: int, frames: int) -> tuple[Tensor, Tensor]:
        """Latents of the clips' first `frames` frames, and text embeddings."""
        chosen, text = self.text(draw, key)
        return self.data.latents[chosen][:, :, :frames].float().to(self.device), text

    def negative(self, wanted: bool) -> Tensor | None:
        """The negative prompt's embeddings for each clip; None if guidance is off.

        Raises:
            UserError: if it is and the data has none.
        """
        if not wanted:
            return None
        if self.data.negative is None:
            raise UserError("guidance needs a negative prompt: vmla-train encode --negative, or guidance off")
        return self.data.negative.float().to(self.device).expand(self.clips, -1, -1)


class ConsistencyStage:
    """Consistency distillation; `target` is the student's moving average, which the loop updates."""

    name = "consistency"

    def __init__(
        self,
        student: VideoMLA,
        target: VideoMLA,
        teacher: VideoMLA,
        training: ConsistencyTraining,
        data: LatentSet,
        *,
        calls: Calls = narrowed,
    ) -> None:
        device = next(student.parameters()).device
        self.meter = Meter(resolve(training.precision, device))
        self.model, self.target, self.teacher = student, target, teacher
        self.calls = self.meter.passes(calls)
        if training.compiled:
            compile_blocks(student, target, teacher)
        self.training, self.schedule = training, training.schedule
        self.batches, self.cache_spec = _batches(training, data, device), CacheSpec.of(student.config)
        self.negative = self.batches.negative(training.consistency.guidance != 1)

    def settings(self) -> dict[str, Any]:
        """The settings that determine the result."""
        return _settings(self.model, self.training, self.batches.data)

    def loss(self, step: int) -> Tensor:
        """The loss on the micro-batch of number `step`."""
        frames = self.cache_spec.chunks.start(self.training.chunks)
        with self.meter.waiting():
            latents, text = self.batches.video(step, 4, frames)
        generator = seeded(latents.device, self.training.seed * 1_000_003 + step)
        with torch.no_grad():
            target, teacher = self._rollout(self.target, text), self._rollout(self.teacher, text)
            free = None if self.negative is None else self._rollout(self.teacher, self.negative)
        networks = Networks(self._rollout(self.model, text), target, teacher, free)
        return consistency_loss(networks, latents, self.training.consistency, generator)

    def _rollout(self, model: VideoMLA, text: Tensor) -> CachedRollout:
        passes = self.calls(model, self.meter.dtype)
        forward_packed = passes.forward_packed if self.training.at_once else None
        return CachedRollout(
            passes.step, CacheSpec.of(model.config), passes.encode_text(text), forward_packed=forward_packed
        )


class DistributionStage:
    """Distribution matching: before each generator step, the critic learns the scores of its videos."""

    def __init__(
        self,
        generator: VideoMLA,
        critic: VideoMLA,
        teacher: VideoMLA,
        training: DistributionTraining,
        data: LatentSet,
        *,
        calls: Calls = narrowed,
        group: int = 1,
        name: str = "distribution",
    ) -> None:
        """`group` is the number of micro-batches in a step, which all share one exit step."""
        self.name, device = name, next(generator.parameters()).device
        self.meter = Meter(resolve(training.precision, device))
        self.model, self.companion, self.teacher = generator, critic, teacher
        self.calls = self.meter.passes(calls)
        if training.compiled:
            compile_blocks(generator, critic, teacher)
        self.training, self.schedule, self.group = training, training.schedule, group
        # It has steps of its own, and more of them.
        updates = training.schedule.steps * training.critic_updates
        rates = replace(training.critic, steps=updates)
        self.companion_optimizers = Optimizers(critic, rates, self.meter.dtype)
        self.batches = _batches(training, data, device)
        self.negative = self.batches.negative(training.guidance != 0)

    def settings(self) -> dict[str, Any]:
        """The settings that determine the result."""
        return _settings(self.model, self.training, self.batches.data)

    def accompany(self, step: int, parallel: Parallel) -> None:
        """Train the critic before the generator's `step`."""
        for update in range(self.training.critic_updates):
            number = step * self.training.critic_updates + update
            parallel.backward(self.critic_loss, number)
            self.companion_optimizers.step(number)

    def loss(self, step: int) -> Tensor:
        """The generator's loss on the micro-batch of number `step`."""
        with self.meter.waiting():
            _, text = self.batches.text(step, 5)
        x, numbers = self._make(text, step, 5)
        sigma, noise = self._noise(x, step, 5)
        with torch.no_grad():
            noisy = add_noise(x, noise, level(sigma))
            scores = [self._score(self.companion, text), self._score(self.teacher, text)]
            if self.negative is not None:
                scores.append(self._score(self.teacher, self.negative))
            base = self._learned(noisy, numbers)
            velocities = [clip_velocity(score(numbers), noisy, x, sigma) for score in scores]
            fake, real, *free = (base - level(sigma) * velocity for velocity in velocities)
            if free:
                real = guided_beyond(real, free[0], self.training.guidance)
            gradient = matching_gradient(self._learned(x, numbers), fake, real)
        return generator_loss(self._learned(x, numbers), gradient)

    def critic_loss(self, number: int) -> Tensor:
        """The critic's loss on the micro-batch of its own `number`."""
        with self.meter.waiting():
            _, text = self.batches.text(number, 6)
        with torch.no_grad():
            x, numbers = self._make(text, number, 6)
        sigma, noise = self._noise(x, number, 6)
        noisy = add_noise(x, noise, level(sigma))
        velocity = clip_velocity(self._score(self.companion, text)(numbers), noisy, x, sigma)
        return critic_loss(velocity, self._learned(x, numbers), self._learned(noise, numbers))

    def _make(self, text: Tensor, draw: int, key: int) -> tuple[Tensor, list[int]]:
        """The student's own videos: the chunks that are scored, with their numbers.

        Exit and length are those of the whole group of micro-batches: all processes run the same passes.
        """
        training, spec = self.training, CacheSpec.of(self.model.config)
        rng = np.random.default_rng([training.seed, draw // self.group, key, 1])
        exit_step = int(rng.integers(training.sampler.steps))
        before = int(rng.integers(training.prelude + 1))
        passes = self.calls(self.model, self.meter.dtype)
        seeds = np.random.default_rng([training.seed, draw, key, 2]).integers(2**31, size=training.clips)
        config, count = self.model.config, before + training.chunks
        made = self_rollout(
            CachedRollout(passes.step, spec, passes.encode_text(text)),
            training.sampler,
            (config.in_channels, config.sample_height, config.sample_width),
            chunks=count,
            exit_step=exit_step,
            seeds=[int(seed) for seed in seeds],
            learned=training.chunks,
        )
        numbers = list(range(count)) if before == 0 else [0, *range(before, count)]
        chunks = spec.chunks.split(made, range(count))
        return torch.cat([chunks[number] for number in numbers], dim=2), numbers

    def _noise(self, x: Tensor, draw: int, key: int) -> tuple[Tensor, Tensor]:
        """One noise level for each clip, and noise."""
        generator = seeded(x.device, (self.training.seed * 1_000_003 + draw) * 8 + key)
        sigma = score_sigma(uniform(len(x), generator, x.device), self.training.score_shift)
        return sigma, normal(x.shape, generator, x.device)

    def _score(self, model: VideoMLA, text: Tensor) -> Any:
        """Starts a rollout of a score network over the chunks of given numbers."""
        passes = self.calls(model, self.meter.dtype)
        text_kv, config = passes.encode_text(text), model.config
        forward_packed = passes.forward_packed if self.training.at_once else None

        def new_rollout(numbers: list[int]) -> CachedRollout:
            if self.training.whole_scores:
                frames = CacheSpec.of(self.model.config).chunks.start(len(numbers))
                spec = CacheSpec.of(replace(config, chunk=frames, first_chunk=0, sink=0, history=0))
                return CachedRollout(passes.step, spec, text_kv)
            return CachedRollout(
                passes.step, CacheSpec.of(config), text_kv, numbers, forward_packed=forward_packed
            )

        return new_rollout

    def _learned(self, x: Tensor, numbers: list[int]) -> Tensor:
        """The chunks of a clip that the scores predict."""
        wanted = predicted(numbers)
        chunks = CacheSpec.of(self.model.config).chunks.split(x, numbers)
        return torch.cat([c for number, c in zip(numbers, chunks, strict=True) if number in wanted], dim=2)


def _batches(
    training: ConsistencyTraining | DistributionTraining, data: LatentSet, device: torch.device
) -> Batches:
    return Batches(data, training.clips, training.seed, device)


def _settings(
    model: VideoMLA, training: ConsistencyTraining | DistributionTraining, data: LatentSet
) -> dict[str, Any]:
    return {"model": model.config.to_dict(), "training": asdict(training), "data": data.settings}
