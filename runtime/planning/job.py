"""The job of a video: all that determines it, as a value; its methods load the parts that make it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from export.engine.manifest import EAGER
from plugins.documents.json_file import LARGEST_NUMBER
from plugins.errors import UserError
from runtime.device.threads import Cores, using
from runtime.engines.base import EagerEngine, Engine
from runtime.engines.block_compiler import choices_file, code_cache, compiled_line, set_inductor_cache
from runtime.engines.compiled import open_engine
from runtime.engines.layers.fp8_linear import fp8_line
from runtime.engines.optimizations import ALL
from runtime.planning.length import length_of
from runtime.planning.plan import VideoPlan
from runtime.planning.start import StartClip, open_start
from runtime.prompts.schedule_file import ScheduleEntry, to_schedule
from runtime.prompts.sources import FixedPrompts, PromptSource
from runtime.rollout.decoding import Decoder, Decoding
from vmla.cache import CacheSpec
from vmla.cli.options.device import device_line
from vmla.scheduler import Sampler
from vmla.weights.checkpoint import Checkpoint, shipped_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that determines one video, with a model, a device and a decoder chosen but not loaded."""

    prompts: PromptSource
    checkpoint: Checkpoint
    chunks: int
    seed: int = 0
    sampler: Sampler
    device: torch.device
    text_device: torch.device
    """Where the text encoder runs, in float32; equal to `device` unless another one was asked for."""
    dtype: torch.dtype
    dtype_reason: str = ""
    """Why it computes in that type, where that was measured."""
    engine_folder: Path | None = None
    """Folder of a compiled engine; None runs the eager model."""
    engine_reason: str = "as asked for"
    compiled: bool = False
    """Whether this process compiles the blocks of the eager model before it runs them."""
    fp8: bool = False
    """Whether the eager model computes its linear layers in float8, but for the excluded ones."""
    fp8_cache: bool = False
    """Whether the eager model caches entries in float8."""
    decoder_file: Path | None = None
    """A codec that decodes in place of the checkpoint's own; see `runtime.rollout.decoding.Decoding`."""
    threads: int
    """CPU threads of denoiser and decoder together. Results differ in the last bits with their number."""
    processes: int = 1
    """Number of processes in `torch.distributed`'s default group, which share each chunk; 1 needs no
    group."""
    start: StartClip | None = None
    """Pictures or a clip that become the video's first chunks."""

    def __post_init__(self) -> None:
        check_seed(self.seed)

    @property
    def decoding(self) -> Decoding:
        """The codec that decodes, not yet loaded."""
        return Decoding(checkpoint=self.checkpoint, file=self.decoder_file, dtype=self.dtype)

    @property
    def cores(self) -> Cores:
        """How denoiser and decoder divide the threads."""
        return Cores.of(self.threads, self.device, silent=self.decoding.silent, text_device=self.text_device)

    @property
    def height(self) -> int:
        """Height of a frame in pixels."""
        return self.checkpoint.model_config().sample_height * self.decoding.sizes().spatial_ratio

    @property
    def width(self) -> int:
        """Width of a frame in pixels."""
        return self.checkpoint.model_config().sample_width * self.decoding.sizes().spatial_ratio

    def what_runs(self) -> list[str]:
        """The engine and why it was chosen, the device, a decoder that was asked for: lines for a person."""
        engine = f"engine: {self.engine_folder or EAGER} ({self.engine_reason})"
        device = device_line(self.device)
        name = str(self.dtype).removeprefix("torch.")
        dtype = [f"type: {name} ({self.dtype_reason})"] if self.dtype_reason else []
        text = [f"text encoder: on {self.text_device}"] if self.text_device != self.device else []
        decoder = [] if self.decoder_file is None else [self.decoding.line()]
        start = [] if self.start is None else [f"start: {self.start.path} ({self.start.chunks} chunks)"]
        compiled = [compiled_line(self.compiled, self.chunks)] if self.device.type == "cuda" else []
        compiled += [fp8_line(self.dtype)] if self.fp8 else []
        compiled += ["cache: fp8, rotary keys in bfloat16"] if self.fp8_cache else []
        compiled += [f"processes: {self.processes}"] if self.processes > 1 else []
        compiled = compiled if self.engine_folder is None else []
        return [engine, device, *dtype, *text, *compiled, *decoder, *start]

    def plan(self) -> VideoPlan:
        """Length and memory of the video; no weights are read."""
        return VideoPlan.of(
            self.decoding, chunks=self.chunks, dtype=self.dtype, sampler=self.sampler,
            fp8_cache=self.fp8_cache, device=self.device, text_device=self.text_device,
        )  # fmt: skip

    def engine(self) -> Engine:
        """Load the denoiser."""
        log.info("loading %s", self.engine_folder or self.checkpoint.folder)
        if self.engine_folder is not None:
            with using(self.cores.denoiser):
                return open_engine(self.engine_folder, self.checkpoint, text_device=self.text_device)
        if self.compiled:
            set_inductor_cache(code_cache())
        return EagerEngine(
            self.checkpoint.transformer(), self.checkpoint.text(), device=self.device, dtype=self.dtype,
            compiled=self.compiled, fp8=self.fp8, fp8_cache=self.fp8_cache,
            optimizations=replace(ALL, kept=choices_file()),
            group=None if self.processes == 1 else torch.distributed.group.WORLD,
            text_device=self.text_device,
        )  # fmt: skip

    def decoders(self) -> Callable[[], Decoder]:
        """Load the codec. Each call of the result returns a decoder for a new video."""
        return self.decoding.decoders(self.device, self.cores.decoder)

    def start_latents(self, made: int = 0) -> tuple[Tensor, ...]:
        """Latents of the start's chunks; none without a start, or once `made` is at least their number.

        Raises:
            UserError: if the start's file has changed.
        """
        if self.start is None or made >= self.start.chunks:
            return ()
        with using(self.cores.denoiser):
            return self.start.encode(self.checkpoint, self.device)

    def another(
        self, prompts: str | PromptSource | Sequence[ScheduleEntry], *, seconds: float, seed: int,
        steps: int | None, start: Path | None = None,
    ) -> tuple[Job, int]:  # fmt: skip
        """A job of another video by the same model, and the number of its frames; see `prepare`.

        Raises:
            UserError: for an empty prompt or an impossible length or number of steps.
        """
        chunks, frames = length_of(self.decoding, minutes=None, seconds=seconds, chunks=None)
        sampler = self.sampler if steps is None else self.sampler.with_steps(steps)
        source = as_source(prompts, self.decoding, chunks)
        begun = as_start(start, self.checkpoint, chunks)
        job = replace(self, prompts=source, chunks=chunks, seed=seed, sampler=sampler, start=begun)
        return job, 0 if self.decoding.silent else frames


def as_source(
    prompts: str | PromptSource | Sequence[ScheduleEntry], decoding: Decoding, chunks: int
) -> PromptSource:
    """The prompts that `prepare` takes, as a source that is asked chunk by chunk.

    Raises:
        UserError: for anything else, or a schedule that does not fit the video.
    """
    if isinstance(prompts, str):
        return FixedPrompts(prompts)
    schedule = isinstance(prompts, Sequence) and all(isinstance(each, ScheduleEntry) for each in prompts)
    if not schedule and not hasattr(prompts, "listen"):
        kind = type(prompts).__name__
        raise UserError(f"{kind} is not a kind of prompt; give text, or texts by their seconds")
    if isinstance(prompts, Sequence):
        lengths, codec = CacheSpec.of(decoding.checkpoint.model_config()).chunks, decoding.sizes()
        return to_schedule(
            cast(Sequence[ScheduleEntry], prompts), chunks=chunks, lengths=lengths, codec=codec
        )
    return prompts


def as_start(start: Path | StartClip | None, checkpoint: Checkpoint, chunks: int) -> StartClip | None:
    """The `StartClip` that `prepare` was given, checked against a video of so many chunks.

    Raises:
        UserError: if it does not fit the model, or leaves nothing to be made.
    """
    known = open_start(start, checkpoint) if isinstance(start, Path) else start
    check_names(None if known is None else known.path)
    if known is not None and known.chunks >= chunks:
        raise UserError(
            f"{known.path} is the first {known.chunks} chunks, and the video has {chunks}; make it longer"
        )
    return known


def check_names(*paths: Path | None) -> None:
    """Refuse files and folders whose names are not UTF-8, which sidecars could not record.

    Raises:
        UserError: naming the first.
    """
    for path in paths:
        if path is None or path.parent == shipped_folder():
            continue
        try:
            os.path.realpath(path).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{path} has a name that is not UTF-8, as sidecars need; rename it") from error


def check_seed(seed: int) -> None:
    """Refuse a seed that a sidecar could not record, or that could not be read again.

    Raises:
        UserError: if it is no whole number, or has more digits than a document may hold.
    """
    if type(seed) is not int:
        raise UserError(f"the seed is {seed!r}; use a whole number")
    if abs(seed) >= LARGEST_NUMBER:
        raise UserError(f"a seed has {len(str(LARGEST_NUMBER)) - 1} digits at most; take a smaller one")
