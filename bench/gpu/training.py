"""Optimizer steps of a training recipe with random weights and data: seconds, operations, memory.

One process shards its weights over itself, as under `torchrun --nproc-per-node 1`. Blocks are checkpointed
and the arithmetic is that of the training stage (on a GPU bfloat16 from float32 weights), so a step costs
here what it costs in training.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.harness.subject import random_model
from vmla.config import ModelConfig
from vmla.train.data.latents import LatentSet
from vmla.train.loop.loop import Accompanied, Stage
from vmla.train.loop.parallel import Parallel, checkpoint_blocks, direct, shard
from vmla.train.loop.throughput import Speed, matrix_peak
from vmla.train.optim.optimizers import Optimizers
from vmla.train.optim.precision import resolve
from vmla.train.recipes.from_checkpoint import DistillationRecipe
from vmla.train.recipes.memory_budget import memory_by_part
from vmla.train.stages.denoiser import DenoiserStage
from vmla.train.stages.distillation import ConsistencyStage, DistributionStage
from vmla.transformer import VideoMLA

STAGES = {"forcing": 3, "consistency": 2, "distribution": 1}
"""Steps that are measured of each training stage: fewer of those that take longer."""
CLIPS = 4
"""Clips in the random data."""


def stage_steps(recipe: DistillationRecipe, name: str, device: torch.device, *, steps: int) -> dict[str, Any]:
    """Measure `steps` steps of stage `name` after one that compiles, on one device."""
    with TemporaryDirectory() as folder, _alone(device, Path(folder)) as parallel:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        stage = _stage(recipe, name, device)
        optimizers = Optimizers(stage.model, stage.schedule, stage.meter.dtype)
        peak = matrix_peak(stage.meter.dtype, device)
        rows = [_step(stage, optimizers, parallel, step, peak) for step in range(steps + 1)]
    return {
        "stage": name,
        "first_seconds": rows[0]["seconds"],
        "steps": rows[1:],
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "planned": _planned(recipe, name),
    }


def _planned(recipe: DistillationRecipe, name: str) -> dict[str, int]:
    """Bytes by part in the plan for one GPU, without the average of the weights, which is not kept here."""
    parts = memory_by_part(recipe, name, gpus=1)
    average = parts.pop("average, sharded")
    return {**parts, "all": parts["all"] - average}


@contextmanager
def _alone(device: torch.device, folder: Path) -> Iterator[Parallel]:
    """A process group of this process."""
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{folder / 'meeting'}", rank=0, world_size=1,
    )  # fmt: skip
    try:
        yield Parallel(device=device, sharded=True)
    finally:
        torch.distributed.destroy_process_group()


def _stage(recipe: DistillationRecipe, name: str, device: torch.device) -> Stage:
    settings = getattr(recipe, name)
    dtype = resolve(settings.precision, device)

    def network(seed: int, *, learns: bool, config: ModelConfig = recipe.model) -> VideoMLA:
        model = random_model(config, seed=seed, device=device.type).requires_grad_(learns)
        return shard(checkpoint_blocks(model) if learns else model, dtype)

    data, student = _data(recipe, settings.chunks, device), network(0, learns=True)
    if name == "forcing":
        return DenoiserStage(recipe.model, settings, data, model=student, calls=direct)
    if name == "distribution":
        judging = replace(recipe.model, layout="mha") if settings.whole_scores else recipe.model
        critic, judge = (network(1, learns=learns, config=judging) for learns in (True, False))
        return DistributionStage(student, critic, judge, settings, data, calls=direct)
    target, teacher = network(0, learns=False), network(1, learns=False)
    return ConsistencyStage(student, target, teacher, settings, data, calls=direct)


def _data(recipe: DistillationRecipe, chunks: int, device: torch.device) -> LatentSet:
    """Noise in place of encoded clips and prompts."""
    c, generator = recipe.model, torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).half()

    latents = normal(CLIPS, c.in_channels, chunks * c.chunk, c.sample_height, c.sample_width)
    text = normal(CLIPS, c.text_tokens, c.text_dim)
    return LatentSet(latents, text, {}, normal(c.text_tokens, c.text_dim))


def _step(stage: Stage, optimizers: Optimizers, parallel: Parallel, step: int, peak: float) -> dict[str, Any]:
    began = time.perf_counter()
    if isinstance(stage, Accompanied):
        stage.accompany(step, parallel)
    loss = parallel.backward(stage.loss, step)  # reads the loss, so the device has finished it
    optimizers.step(step)
    if parallel.device.type == "cuda":
        torch.cuda.synchronize(parallel.device)
    seconds = time.perf_counter() - began
    return {"loss": loss, "seconds": seconds, **asdict(Speed.of(stage.meter.take(seconds), peak, 1))}
