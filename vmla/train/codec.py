"""Stage `codec`: the tiny autoencoder learns to draw what it has seen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vmla.train.optimizers import Schedule
from vmla.vae.tiny import TinyCodec, TinyCodecConfig
from vmla.world.render import render
from vmla.world.scene import draw_scene


@dataclass(frozen=True, kw_only=True)
class CodecTraining:
    """Settings of the stage."""

    schedule: Schedule
    clips: int = 6
    frames: int = 12
    """Pixel frames of a clip."""
    noise: float = 0.2
    """Largest deviation of the noise on the (unit) latents: a denoiser's latents are never exact."""
    bfloat16: bool = True
    seed: int = 0


class CodecStage:
    """Reconstruction of rendered clips, through noisy latents."""

    name = "codec"

    def __init__(self, codec: TinyCodecConfig, training: CodecTraining) -> None:
        torch.manual_seed(training.seed)
        self.model = TinyCodec(codec)
        self.training = training
        self.schedule = training.schedule

    def settings(self) -> dict[str, Any]:
        """All that determines the result."""
        return {"codec": asdict(self.model.config), "training": asdict(self.training)}

    def loss(self, step: int) -> Tensor:
        """Mean absolute and squared error; latents are whitened by their batch's own statistics."""
        video = draw_clips(self.training.seed, step, clips=self.training.clips, frames=self.training.frames)
        generator = torch.Generator().manual_seed(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training.bfloat16):
            raw = self.model.encode_raw(video).float()
            mean, std = (f((0, 2, 3, 4), keepdim=True) for f in (raw.mean, raw.std))
            latents = (raw - mean) / std
            strength = torch.rand(len(video), 1, 1, 1, 1, generator=generator) * self.training.noise
            latents = latents + strength * torch.randn(latents.shape, generator=generator)
            error = self.model.decode_raw(latents)[0].float() - video
        # Whitening makes the raw scale free: without a pull towards 1 it grows until nothing learns.
        scale = mean.square().mean() + std.log().square().mean()
        return error.abs().mean() + 10 * error.square().mean() + 0.01 * scale


def draw_clips(seed: int, step: int, *, clips: int, frames: int) -> Tensor:
    """The rendered batch of `step`: [clips, frames, 3, 64, 64] in [0, 1]."""
    rng = np.random.default_rng([seed, step])
    starts = rng.integers(4096, size=clips)
    return torch.stack([render(draw_scene(rng), frames, int(start)) for start in starts])


@torch.inference_mode()
def with_statistics(codec: TinyCodec, *, seed: int, clips: int = 256, frames: int = 24) -> TinyCodecConfig:
    """The configuration of `codec` with mean and deviation of its latents measured on fresh clips."""
    batches = [draw_clips(seed + 1, i, clips=16, frames=frames) for i in range(clips // 16)]
    raw = torch.cat([codec.encode_raw(batch).float() for batch in batches])
    mean, std = raw.mean((0, 2, 3, 4)), raw.std((0, 2, 3, 4))
    return replace(codec.config, latents_mean=tuple(mean.tolist()), latents_std=tuple(std.tolist()))
