"""What is asked for, checked without weights (`prepare`), and the parts that a `Job` loads to make it."""

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
from runtime.device.cuda_graphs import to_host
from runtime.device.threads import Cores, using
from runtime.engines.base import EagerEngine, Engine
from runtime.engines.block_compiler import choose_compiled, code_cache, compiled_line, keep_compiled_code
from runtime.engines.compiled import find_engine, fit, open_engine
from runtime.engines.layers.fp8_cache import choose_fp8_cache
from runtime.engines.layers.fp8_linear import choose_fp8, fp8_line
from runtime.engines.sequence_parallel import check_divisible
from runtime.outputs import Frames
from runtime.planning.plan import VideoPlan, check_cache, check_length, chunks_for
from runtime.planning.start import Start, open_start
from runtime.prompts.schedule_file import Entry, to_schedule
from runtime.prompts.sources import FixedPrompts, PromptSource
from runtime.rollout.decoding import Decoder, Decoding
from vmla.cache import CacheSpec
from vmla.cli.options.device import choose_device, device_line
from vmla.config import FRAMES_PER_SECOND
from vmla.scheduler import Sampler
from vmla.vae import frames_in
from vmla.weights.checkpoint import SHIPPED, Checkpoint, shipped_folder
from vmla.weights.locate import find_checkpoint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


THREADS = 2
"""If nobody says how many: one denoises, one decodes. Not as many as a machine has cores, or a seed would
give another video on another machine: an operation that is shared out among more threads rounds otherwise."""
THREADS_PER_CORE = 16
"""The most threads for each core; more would only wait for one another."""

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
    dtype: torch.dtype
    engine_folder: Path | None = None
    """Folder of a compiled engine; None runs the eager model."""
    engine_reason: str = "as asked for"
    compiled: bool = False
    """Whether this process compiles the blocks of the eager model before it runs them."""
    fp8: bool = False
    """Whether layers of the eager model that float8 is for compute in it."""
    fp8_cache: bool = False
    """Whether the cache of the eager model keeps entries in float8."""
    decoder_file: Path | None = None
    """A codec that decodes in place of the checkpoint's own; see `runtime.rollout.decoding.Decoding`."""
    threads: int
    """CPU threads of denoiser and decoder together. Results differ in the last bits with their number."""
    processes: int = 1
    """Those of `torch.distributed`'s default group, which compute each chunk together; 1 needs no group."""
    start: Start | None = None
    """What the video goes on from; it gives the first chunks."""

    def __post_init__(self) -> None:
        check_seed(self.seed)

    @property
    def decoding(self) -> Decoding:
        """The codec that decodes, not yet loaded."""
        return Decoding(checkpoint=self.checkpoint, file=self.decoder_file, dtype=self.dtype)

    @property
    def cores(self) -> Cores:
        """How denoiser and decoder divide the threads."""
        return Cores.of(self.threads, self.device, silent=self.decoding.silent)

    @property
    def height(self) -> int:
        """Pixels of a frame from top to bottom."""
        return self.checkpoint.model_config().sample_height * self.decoding.sizes().spatial_ratio

    @property
    def width(self) -> int:
        """Width of a frame in pixels."""
        return self.checkpoint.model_config().sample_width * self.decoding.sizes().spatial_ratio

    def what_runs(self) -> list[str]:
        """The engine and why it was chosen, the device, a decoder that was asked for: lines for a person."""
        engine = f"engine: {self.engine_folder or EAGER} ({self.engine_reason})"
        device = device_line(self.device)
        decoder = [] if self.decoder_file is None else [self.decoding.line()]
        start = [] if self.start is None else [f"start: {self.start.path} ({self.start.chunks} chunks)"]
        compiled = [compiled_line(self.compiled, self.chunks)] if self.device.type == "cuda" else []
        compiled += [fp8_line(self.dtype)] if self.fp8 else []
        compiled += ["cache: fp8, rotary keys in bfloat16"] if self.fp8_cache else []
        compiled += [f"processes: {self.processes}"] if self.processes > 1 else []
        return [engine, device, *(compiled if self.engine_folder is None else []), *decoder, *start]

    def plan(self) -> VideoPlan:
        """Length and memory of the video; no weights are read."""
        return VideoPlan.of(
            self.decoding, chunks=self.chunks, dtype=self.dtype, sampler=self.sampler,
            fp8_cache=self.fp8_cache,
        )  # fmt: skip

    def engine(self) -> Engine:
        """Load the denoiser."""
        log.info("loading %s", self.engine_folder or self.checkpoint.folder)
        if self.engine_folder is not None:
            with using(self.cores.denoiser):
                return open_engine(self.engine_folder, self.checkpoint)
        if self.compiled:
            keep_compiled_code(code_cache())
        return EagerEngine(
            self.checkpoint.transformer(), self.checkpoint.text(), device=self.device, dtype=self.dtype,
            compiled=self.compiled, fp8=self.fp8, fp8_cache=self.fp8_cache,
            group=None if self.processes == 1 else torch.distributed.group.WORLD,
        )  # fmt: skip

    def decoders(self) -> Callable[[], Decoder]:
        """Load the codec. Each call of the result returns a decoder for a new video."""
        return self.decoding.decoders(self.device, self.cores.decoder)

    def start_latents(self, made: int = 0) -> tuple[Tensor, ...]:
        """Latents of the first chunks, of a video of which `made` are there already; none if none are needed.

        Raises:
            UserError: if what it goes on from is not what it was.
        """
        if self.start is None or made >= self.start.chunks:
            return ()
        with using(self.cores.denoiser):
            return self.start.encode(self.checkpoint, self.device)

    def another(
        self, prompts: str | PromptSource | Sequence[Entry], *, seconds: float, seed: int,
        steps: int | None, start: Path | None = None,
    ) -> tuple[Job, int]:  # fmt: skip
        """A job of another video by the same model, and the number of its frames; see `prepare`.

        Raises:
            UserError: for an empty prompt or an impossible length or number of steps.
        """
        chunks, frames = length_of(self.decoding, minutes=None, seconds=seconds, chunks=None)
        sampler = self.sampler if steps is None else replace(self.sampler, steps=steps)
        source = as_source(prompts, self.decoding, chunks)
        begun = as_start(start, self.checkpoint, chunks)
        job = replace(self, prompts=source, chunks=chunks, seed=seed, sampler=sampler, start=begun)
        return job, 0 if self.decoding.silent else frames


def prepare(
    prompts: str | PromptSource | Sequence[Entry],
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
    compiled: bool | None = False,
    precision: str | None = None,
    cache: str | None = None,
    decoder: Path | None = None,
    threads: int | None = None,
    processes: int = 1,
    start: Path | Start | None = None,
) -> tuple[Job, int]:
    """A job and the number of its frames, with everything checked that can be checked without weights.

    Args:
        prompts: one for the whole video, those of a schedule in seconds, or a source of them.
        checkpoint: its folder or the name of a shipped one; the engine's own, or `sprites`, if None.
        layout: what the checkpoint must have.
        minutes, seconds, chunks: the length; at most one of them, ten seconds if none is given.
        seed, steps: of the sampling; None takes the checkpoint's own number of steps.
        device, dtype: by name; `auto` is a GPU if there is one, and its own type (`choose_dtype`).
        engine, engines: a folder made by `vmla-export`; where that is None, a folder of some to choose from.
        compiled: whether to compile the model's blocks; None does so where it pays, and in fp8.
        precision, cache: `fp8` for layers in float8, on a GPU, or a cache in it; None is that of `dtype`.
        decoder: a file of TAEHV's weights in place of the checkpoint's codec, or `NOTHING`: no frames.
        threads: CPU threads of denoiser and decoder together; one for each if None. processes: see `Job`.
        start: a video, an image or a folder of pictures to go on from; a known one is not looked at.

    Raises:
        UserError: for whatever cannot be.
    """
    opened, device, dtype = _open(checkpoint, layout, engine, device=device, dtype=dtype)
    check_names(opened.folder, engine, decoder)
    where = choose_device(device)
    check_cache(opened.model_config(), compute := choose_dtype(dtype, where), where)
    decoding = Decoding(checkpoint=opened, file=decoder, dtype=compute)
    count, frames = length_of(decoding, minutes=minutes, seconds=seconds, chunks=chunks)
    fp8 = choose_fp8(precision, where, compute, engine)
    engines = None if fp8 or cache or processes > 1 else engines
    engine, reason = look_up(opened, where, compute, engine, engines)
    job = Job(
        prompts=as_source(prompts, decoding, count), checkpoint=opened, chunks=count, seed=seed,
        sampler=opened.sampler() if steps is None else replace(opened.sampler(), steps=steps),
        device=where, dtype=compute, engine_folder=engine, engine_reason=reason,
        compiled=choose_compiled((fp8 or None) if compiled is None else compiled, where, engine, count),
        fp8=fp8, fp8_cache=choose_fp8_cache(cache, opened.model_config(), engine), decoder_file=decoder,
        threads=choose_threads(threads), processes=choose_processes(processes, opened, engine, cache),
        start=as_start(start, opened, count),
    )  # fmt: skip
    return job, 0 if decoding.silent else frames


def _open(
    checkpoint: str | Path | None, layout: str | None, engine: Path | None, *, device: str, dtype: str
) -> tuple[Checkpoint, str, str]:
    """The checkpoint, device and type that are named, or those that the engine needs.

    Raises:
        UserError: if there is no such checkpoint, or it has another layout than the one asked for.
    """
    if engine is None:
        opened = find_checkpoint(SHIPPED if checkpoint is None else checkpoint)
    else:
        opened, device, dtype = fit(engine, checkpoint, device=device, dtype=dtype)
    own = opened.model_config().layout
    if layout not in (None, own):
        raise UserError(f"checkpoint {opened.folder} has layout {own}; name one with {layout}")
    return opened, device, dtype


def check_seed(seed: int) -> None:
    """Refuse a seed that no document could hold: a sidecar would not be read again.

    Raises:
        UserError: then.
    """
    if abs(seed) >= LARGEST_NUMBER:
        raise UserError(f"a seed has {len(str(LARGEST_NUMBER)) - 1} digits at most; take a smaller one")


def check_names(*paths: Path | None) -> None:
    """Refuse files and folders whose names no document could hold, as bytes that are not UTF-8.

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


def choose_processes(processes: int, checkpoint: Checkpoint, engine: Path | None, cache: str | None) -> int:
    """How many processes compute each chunk together.

    Raises:
        UserError: for some that cannot share a frame's tokens, or would share an engine or a cache in float8.
    """
    if processes > 1 and engine is not None:
        raise UserError(f"{engine} runs in one process; leave --engine out, or --sequence-parallel")
    if processes > 1 and cache is not None:
        raise UserError("processes exchange entries that are not packed; leave --cache out")
    check_divisible(checkpoint.model_config().tokens_per_frame, processes)
    return processes


def choose_threads(wish: int | None) -> int:
    """The number of CPU threads: `wish`, or the same on every machine.

    Raises:
        UserError: for more than a machine has use for; tens of thousands would end the process.
    """
    cores = os.cpu_count() or 1
    if wish is not None and wish > THREADS_PER_CORE * cores:
        most = THREADS_PER_CORE * cores
        raise UserError(f"{wish} threads on {cores} cores; use at most {most}, or leave --threads out")
    return wish or THREADS


def as_start(start: Path | Start | None, checkpoint: Checkpoint, chunks: int) -> Start | None:
    """The `Start` that `prepare` was given, checked against a video of so many chunks.

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


def as_source(prompts: str | PromptSource | Sequence[Entry], decoding: Decoding, chunks: int) -> PromptSource:
    """What `prepare` takes for prompts, as a source that is asked chunk by chunk."""
    if isinstance(prompts, str):
        return FixedPrompts(prompts)
    if isinstance(prompts, Sequence):
        lengths, codec = CacheSpec.of(decoding.checkpoint.model_config()).chunks, decoding.sizes()
        return to_schedule(cast(Sequence[Entry], prompts), chunks=chunks, lengths=lengths, codec=codec)
    return prompts


def length_of(
    decoding: Decoding, *, minutes: float | None, seconds: float | None, chunks: int | None
) -> tuple[int, int]:
    """How many chunks to make and how many frames of them to keep: ten seconds if nothing is given.

    Raises:
        UserError: for more than one length, or one that cannot be.
    """
    if sum(length is not None for length in (minutes, seconds, chunks)) > 1:
        raise UserError("more than one length; give one of --minutes, --seconds, --chunks")
    lengths, codec = CacheSpec.of(decoding.checkpoint.model_config()).chunks, decoding.sizes()
    wanted = 60 * minutes if minutes is not None else 10.0 if seconds is None else seconds
    count = chunks or chunks_for(wanted, lengths, codec)
    whole = frames_in(lengths.start(count), codec)
    check_length(whole / FRAMES_PER_SECOND)
    trained = decoding.checkpoint.model_config().absolute_positions
    if 0 < trained < lengths.start(count):
        most = frames_in(trained, codec) / FRAMES_PER_SECOND
        raise UserError(
            f"{decoding.checkpoint.folder} has absolute positions, trained for {trained} latent frames: ask "
            f"for {most:g} s at most, or convert it without --absolute-positions"
        )
    return count, whole if chunks else round(wanted * FRAMES_PER_SECOND)


def look_up(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype,
    engine: Path | None, engines: Path | None,
) -> tuple[Path | None, str]:  # fmt: skip
    """The engine asked for, or a fitting one in the folder `engines`, or None; and the reason, in words."""
    if engine is not None or engines is None:
        return engine, "as asked for"
    name = str(dtype).removeprefix("torch.")
    return find_engine(checkpoint, device=device.type, dtype=name, engines=engines)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type called `name`; `auto` is float32 on a CPU and bfloat16 elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return DTYPES[name]


def to_pixels(frames: Tensor) -> Frames:
    """One video's frames [n, 3, H, W] in [0, 1] to [n, H, W, 3] uint8 in main memory."""
    scaled = (frames * 255).round().to(torch.uint8)
    pixels: Frames = to_host(scaled.permute(0, 2, 3, 1).contiguous()).numpy()
    return pixels
