"""A video's length, size and memory, computed before anything is allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from plugins.errors import UserError
from runtime.device.memory import format_bytes, free_bytes
from runtime.engines.layers.fp8_cache import PackedEntries
from runtime.planning.peak_memory import decoding_scratch, pass_scratch
from runtime.rollout.buffers import noise_draws, picture_shape
from runtime.rollout.decoding import Decoding
from runtime.rollout.recache import LatentHistory
from vmla.cache import CacheSpec
from vmla.config import FRAMES_PER_SECOND, ModelConfig
from vmla.scheduler import Sampler
from vmla.vae import frames_in

TEXT = "text encoder"
ALWAYS_THERE = 2**30
"""Bytes of a cache below which the free memory is not checked."""


@dataclass(frozen=True, kw_only=True)
class VideoPlan:
    """Length, picture size and memory of one video."""

    chunks: int
    frames: int
    """Pixel frames of all chunks together."""
    height: int
    width: int
    """Height and width of a frame in pixels."""
    positions: int
    """Positions in use: those of the window, or of the whole trained length if they count from the video's
    start."""
    absolute: bool
    cache_bytes_per_token_and_layer: int
    shared: dict[str, int]
    """Bytes by part that all videos on a device share: weights, and scratch used by one at a time."""
    own: dict[str, int]
    """Bytes by part that each video holds."""
    elsewhere: dict[str, int]
    """Bytes by part on another device than the model's; no other figure counts them."""
    device: torch.device
    """The model's device."""

    @classmethod
    def of(
        cls, decoding: Decoding, *, chunks: int, dtype: torch.dtype, sampler: Sampler, device: torch.device,
        text_device: torch.device, fp8_cache: bool = False,
    ) -> VideoPlan:  # fmt: skip
        """Plan `chunks` chunks of one video with the model computing in `dtype`, its cache too or in fp8.

        A text encoder on another device than the model's takes none of its memory.
        This takes a second: decoding is followed on the meta device, which loads a compiler.
        """
        checkpoint, codec = decoding.checkpoint, decoding.sizes()
        config = checkpoint.model_config()
        spec, size = CacheSpec.of(config), dtype.itemsize
        entry = PackedEntries(config).width if fp8_cache else spec.entry_width * size
        single = torch.float32.itemsize
        decodes, texts = not decoding.silent, 2 if sampler.guided else 1
        picture = math.prod(picture_shape(config, config.chunk)) * single
        lengths = {spec.chunks.first, spec.chunks.following}  # each has buffers of its own
        buffered = sum(math.prod(picture_shape(config, frames)) for frames in lengths) * single
        text, beside = checkpoint.elements("text_encoder") * single, text_device == device
        return cls(
            chunks=chunks,
            frames=frames_in(spec.chunks.start(chunks), codec),
            height=config.sample_height * codec.spatial_ratio,
            width=config.sample_width * codec.spatial_ratio,
            positions=config.absolute_positions or spec.positions,
            absolute=spec.absolute,
            cache_bytes_per_token_and_layer=entry,
            shared={
                "transformer": checkpoint.elements("transformer") * size,
                **({TEXT: text} if beside else {}),
                "codec": decoding.codec_bytes(),
                "scratch of a pass": pass_scratch(config, size),
                "scratch of decoding": decoding_scratch(codec, config) if decodes else 0,
            },
            own={
                "latent cache" if config.layout == "mla" else "cache": replace(spec, entry_width=entry).bytes(
                    element_size=1
                ),
                "text keys and values": (
                    texts * 2 * config.num_layers * config.text_tokens * config.inner_dim * size
                ),
                "noise and latents of a chunk": (noise_draws(sampler) + 1) * buffered,
                "latents of the window": LatentHistory.capacity(spec) * picture,
                "decoder memory": decodes * codec.stream_bytes(config.sample_height, config.sample_width),
            },
            elsewhere={} if beside else {f"{TEXT} on {text_device}": text},
            device=device,
        )

    @property
    def seconds(self) -> float:
        """Length of the video when played."""
        return self.frames / FRAMES_PER_SECOND

    @property
    def video_bytes(self) -> int:
        """Bytes that one video takes, without the shared ones."""
        return sum(self.own.values())

    def bytes_for(self, videos: int) -> int:
        """Bytes that so many videos take at once, shared ones included.

        On a GPU several videos leave room for one more, whose buffers are those of the graphs.
        """
        graphs = self.device.type == "cuda" and videos > 1
        return sum(self.shared.values()) + (videos + graphs) * self.video_bytes

    def videos_in(self, memory: int) -> int:
        """How many such videos fit into `memory` bytes at once."""
        fit = max(0, memory - self.bytes_for(0)) // self.video_bytes
        return max(1, fit - 1) if fit and self.device.type == "cuda" else fit

    def remedy(self, videos: int, memory: int) -> str:
        """The end of a refusal of so many videos: the option with which they fit; "" if none would do."""
        text = self.shared.get(TEXT, 0)
        if self.device.type == "cpu" or self.videos_in(memory + text) < videos:
            return ""
        return f", or keep the text encoder ({text:,} bytes) off {self.device}: --text-device cpu"

    def lines(self) -> list[str]:
        """The plan for a person to read."""
        parts = self.shared | self.own
        told = "counted from the video's start" if self.absolute else "whatever the length"
        return [
            f"{self.chunks} chunks, {self.frames} frames of {self.width}x{self.height}, {self.seconds:g} s",
            f"positions 0 to {self.positions - 1}, {told}",
            f"cache per token and layer: {self.cache_bytes_per_token_and_layer:,} bytes",
            *(f"{part}: {format_bytes(count)}" for part, count in parts.items()),
            f"in all: {format_bytes(self.bytes_for(1))}, "
            f"{format_bytes(self.video_bytes)} more for each further video",
            *(f"{part}: {format_bytes(count)}, not counted above" for part, count in self.elsewhere.items()),
        ]


def check_cache(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a model whose cache alone does not fit, before any of it is allocated.

    Raises:
        UserError: naming the memory needed and the memory there.
    """
    needed = CacheSpec.of(config).bytes(element_size=dtype.itemsize)
    if needed <= ALWAYS_THERE or device.type not in ("cpu", "cuda"):
        return
    if needed > (free := free_bytes(device)):
        where = f"{device} has {free:,} free"
        raise UserError(f"the cache of this model takes {needed:,} bytes, {where}; use a smaller window")
