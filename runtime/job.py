"""What is asked of a rollout, what it will take, and the parts that carry it out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from runtime.compiled import find_engine, fit, open_engine
from runtime.decoding import CodecDecoder, Decoder
from runtime.engine import EagerEngine, Engine
from runtime.plan import Plan, check_length, chunks_for, frames_in
from runtime.prompts import FixedPrompts
from runtime.rollout import Chunk, rollout
from runtime.sinks import Frames
from vmla.config import FRAMES_PER_SECOND
from vmla.errors import UserError
from vmla.sampler import Sampler
from vmla.weights.folder import SHIPPED, Checkpoint, open_checkpoint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video to make."""

    prompt: str
    checkpoint: Checkpoint
    chunks: int
    seed: int = 0
    sampler: Sampler
    device: torch.device
    dtype: torch.dtype
    engine_folder: Path | None = None
    """A compiled engine; without one, the eager model runs."""
    engine_reason: str = "as asked for"

    def engine_line(self) -> str:
        """What will run, and why, for a person to read."""
        return f"engine: {self.engine_folder or 'eager'} ({self.engine_reason})"

    def plan(self) -> Plan:
        """What it will take; reads no weights."""
        return Plan.of(self.checkpoint, chunks=self.chunks, dtype=self.dtype)

    def engine(self) -> Engine:
        """The denoiser, loaded."""
        if self.engine_folder is not None:
            return open_engine(self.engine_folder, self.checkpoint)
        return EagerEngine(
            self.checkpoint.transformer(), self.checkpoint.text(), device=self.device, dtype=self.dtype
        )

    def decoder(self) -> Decoder:
        """The decoder, loaded, at the start of a video."""
        return CodecDecoder(self.checkpoint.codec(), self.device)

    def run(self, engine: Engine, decoder: Decoder) -> Iterator[Chunk]:
        """Make the video's chunks."""
        prompts = FixedPrompts(self.prompt)
        return rollout(engine, decoder, prompts, self.sampler, seeds=[self.seed], chunks=self.chunks)


def prepare(
    prompt: str,
    checkpoint: str | Path | None,
    *,
    layout: str | None = None,
    minutes: float | None = None,
    seconds: float | None = None,
    chunks: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    engine: Path | None = None,
    engines: Path | None = None,
) -> tuple[Job, int]:
    """A job and the number of its frames, with everything checked that can be checked without weights.

    Exactly one length counts; ten seconds if none is given. Where no engine is given, one in the folder
    `engines` that fits is taken.

    Raises:
        UserError: for whatever cannot be.
    """
    if not prompt.strip():
        raise UserError("the prompt is empty; describe what the video shows")
    if sum(length is not None for length in (minutes, seconds, chunks)) > 1:
        raise UserError("more than one length; give one of --minutes, --seconds, --chunks")
    if engine is None:
        opened = open_checkpoint(SHIPPED if checkpoint is None else checkpoint)
    else:
        opened, device, dtype = fit(engine, checkpoint, device=device, dtype=dtype)
    config, codec = opened.model_config(), opened.codec(weights=False)
    if layout not in (None, config.layout):
        raise UserError(f"checkpoint {opened.folder} has layout {config.layout}; name one with {layout}")
    wanted = 60 * minutes if minutes is not None else 10.0 if seconds is None else seconds
    count = chunks or chunks_for(wanted, config.chunk, codec)
    whole = frames_in(count, config.chunk, codec)
    check_length(whole / FRAMES_PER_SECOND)
    sampler = opened.sampler()
    where = choose_device(device)
    compute = choose_dtype(dtype, where)
    if engine is None and engines is not None:
        engine, reason = look_up(opened, where, compute, engines)
    else:
        reason = "as asked for"
    job = Job(
        prompt=prompt,
        checkpoint=opened,
        chunks=count,
        seed=seed,
        sampler=sampler if steps is None else replace(sampler, steps=steps),
        device=where,
        dtype=compute,
        engine_folder=engine,
        engine_reason=reason,
    )
    return job, whole if chunks else round(wanted * FRAMES_PER_SECOND)


def look_up(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, engines: Path
) -> tuple[Path | None, str]:
    """The engine in the folder `engines` that runs in place of the model, if one fits, and why it does."""
    name = str(dtype).removeprefix("torch.")
    found = find_engine(checkpoint, device=device.type, dtype=name, engines=engines)
    return found, f"found in {engines}" if found else f"nothing in {engines} fits"


def choose_device(name: str) -> torch.device:
    """The device called `name`.

    Raises:
        UserError: if it is not there.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"no device {name!r} here; use cpu, or a device that torch sees") from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type called `name`; `auto` is float32 on a CPU and bfloat16 elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return DTYPES[name]


def to_pixels(frames: Tensor) -> Frames:
    """One video's frames [n, 3, H, W] in [0, 1] to [n, H, W, 3] uint8 in main memory."""
    scaled = (frames * 255).round().to(torch.uint8)
    pixels: Frames = scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels
