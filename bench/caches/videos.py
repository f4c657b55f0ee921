"""Videos of one prompt, seed and window, made side by side, each with a cache of another form."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.caches.engines import StoredCache, latent_engine, per_head_engine
from bench.harness.paired_timing import Pair, WaitingClock
from bench.harness.subject import filling
from bench.quality.drift import WINDOW, drift, measures
from runtime.engines.base import Engine
from runtime.engines.layers.cache_formats import AsTheyAre, Format, Scaled
from runtime.prompts.sources import FixedPrompts
from runtime.rollout.decoding import CodecDecoder, Decoder
from runtime.rollout.rollout import Rollout
from vmla.config import FRAMES_PER_SECOND
from vmla.weights.checkpoint import Checkpoint

LATENT, CONTROL = "latent, float32", "latent, float32, again"
"""The baseline of all comparisons, and the same once more: how they differ is the measurement's noise."""
PER_HEAD = "per head, float32"


@dataclass(kw_only=True)
class MeasuredVideo:
    """One of the videos that are made side by side, with its measurements."""

    name: str
    engine: Engine
    bytes_per_token: int
    """Bytes cached of one token in one layer."""
    rollout: Rollout
    decoder: Decoder
    times: list[float] = field(default_factory=list)
    """Milliseconds of each chunk: denoised and committed, not decoded."""
    apart: list[float] = field(default_factory=list)
    """For each chunk, the mean distance of a pixel's colour from that in the video with the latent cache."""
    frames: list[Tensor] = field(default_factory=list)
    """Frames of the window of measurement that is not full yet."""
    points: list[dict[str, float]] = field(default_factory=list)
    """The measures of each whole window."""

    def make(self, clock: WaitingClock) -> Tensor:
        """The frames [n, 3, H, W] of the next chunk."""
        made: list[Tensor] = []

        def chunk() -> None:
            made.append(self.rollout.denoise())
            self.rollout.update_cache()

        self.times.append(clock.time(chunk))
        return self.decoder.decode(made[0])[0]

    def see(self, frames: Tensor) -> None:
        """Add `frames`, and the measures of each window that they complete."""
        self.frames = [*self.frames, *frames]
        while len(self.frames) >= WINDOW:
            self.points.append(measures(torch.stack(self.frames[:WINDOW])))
            self.frames = self.frames[WINDOW:]


def forms(checkpoint: Checkpoint) -> list[Format]:
    """The forms of a latent cache, besides float32."""
    rotary = checkpoint.model_config().qk_rope_head_dim
    return [
        AsTheyAre("latent, bfloat16", torch.bfloat16),
        Scaled("latent, fp8", bits=8, rotary=rotary),
        Scaled("latent, 4-bit", bits=4, rotary=rotary),
    ]


def open_engines(checkpoint: Checkpoint) -> dict[str, Engine]:
    """Every form's engine, over one model in float32; the latent one first."""
    engines: dict[str, Engine] = {name: latent_engine(checkpoint) for name in (LATENT, CONTROL)}
    engines[PER_HEAD] = per_head_engine(checkpoint)
    for form in forms(checkpoint):
        engines[form.name] = StoredCache(latent_engine(checkpoint), form, batch=1)
    return engines


def open_videos(checkpoint: Checkpoint, prompt: str, seed: int) -> list[MeasuredVideo]:
    """A video of each form, at its first chunk."""
    known = {form.name: form for form in forms(checkpoint)}
    codec, sampler, videos = checkpoint.codec(), checkpoint.sampler(), []
    for name, engine in open_engines(checkpoint).items():
        width = engine.cache_spec.entry_width
        size = known[name].bytes_per_token(width) if name in known else width * engine.dtype.itemsize
        rollout = Rollout(engine, FixedPrompts(prompt), sampler, seeds=[seed], graphs=False)
        decoder = CodecDecoder(codec, engine.device)
        videos.append(
            MeasuredVideo(name=name, engine=engine, bytes_per_token=size, rollout=rollout, decoder=decoder)
        )
    return videos


def side_by_side(videos: Sequence[MeasuredVideo], chunks: int) -> Iterator[int]:
    """Make `chunks` chunks of each video in turns, and yield how many are made.

    The order reverses with each chunk, so that a steady drift of the machine's speed affects all alike.
    """
    clock = WaitingClock(videos[0].engine.device)
    for number in range(chunks):
        made: dict[str, Tensor] = {}
        for video in videos if number % 2 == 0 else reversed(videos):
            made[video.name] = video.make(clock)
        for video in videos:
            video.apart.append(float((made[video.name] - made[LATENT]).abs().mean()))
            video.see(made[video.name])
        yield number + 1


def errors(checkpoint: Checkpoint, prompt: str, seed: int) -> dict[str, float]:
    """For each form, the relative error of the first chunk that is made of a full window.

    All have the same past: the latents of the video with the latent cache, each committed in its own form.
    """
    found: dict[str, float] = {}
    sampler, past, wanted = checkpoint.sampler(), list[Tensor](), torch.zeros(())
    for name, engine in open_engines(checkpoint).items():
        rollout = Rollout(engine, FixedPrompts(prompt), sampler, seeds=[seed], graphs=False, start=past)
        made = []
        for _ in range(filling(engine.config)):
            made.append(rollout.denoise())
            rollout.update_cache()
        made.append(rollout.denoise())
        if name == LATENT:
            past, wanted = made[:-1], made[-1]
        found[name] = float((made[-1] - wanted).norm() / wanted.norm())
    return found


def rows(videos: Sequence[MeasuredVideo], wrong: dict[str, float]) -> list[dict[str, Any]]:
    """The rows of the results document, one for each form."""
    baseline, control = videos[0], videos[1]
    noise = paired(baseline, control).spread
    return [_row(video, baseline, wrong[video.name], noise) for video in videos if video is not control]


def _row(video: MeasuredVideo, baseline: MeasuredVideo, error: float, noise: float) -> dict[str, Any]:
    pair, spec = paired(baseline, video), video.engine.cache_spec
    frames = spec.chunk * 4
    return {
        "cache": video.name,
        "bytes_per_token_and_layer": video.bytes_per_token,
        "bytes_per_video": video.bytes_per_token * spec.layers * spec.slots * spec.tokens_per_frame,
        "error": error,
        "drift": drift(video.points),
        "apart": statistics.mean(video.apart[-WINDOW // frames :]),
        "frames_per_second": frames / statistics.median(pair.other) * 1e3,
        "time_over_latent": pair.typical,
        "spread": pair.spread,
        "differs": video is not baseline and pair.differs(noise),
        "along": list(_along(video)),
    }


def paired(baseline: MeasuredVideo, other: MeasuredVideo) -> Pair:
    """Times of the chunks whose window is full: an even number, since the order reverses with each."""
    first = filling(baseline.engine.config) + 1
    count = (len(baseline.times) - first) // 2 * 2
    return Pair(baseline.times[-count:], other.times[-count:])


def _along(video: MeasuredVideo) -> Iterator[dict[str, float]]:
    """Yield of each chunk: the second at which it ends, its time, the bytes of cache in use, the distance."""
    spec = video.engine.cache_spec
    for number, (taken, apart) in enumerate(zip(video.times, video.apart, strict=True)):
        end = spec.chunks.start(number + 1)
        used = min(end, spec.slots) * spec.tokens_per_frame * spec.layers * video.bytes_per_token
        second = end * 4 / FRAMES_PER_SECOND
        yield {"second": second, "chunk_ms": round(taken, 3), "bytes": used, "apart": round(apart, 6)}
