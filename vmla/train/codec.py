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
from vmla.world.scene import SIZE, draw_scene, trace_path


@dataclass(frozen=True, kw_only=True)
class CodecTraining:
    """Settings of the stage."""

    schedule: Schedule
    clips: int = 16
    frames: int = 12
    """Pixel frames of a clip."""
    crop: int = 32
    """Side in pixels of the part of each clip that is trained on, about one of its objects."""
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
        settings = self.training
        video = draw_clips(
            settings.seed, step, clips=settings.clips, frames=settings.frames, crop=settings.crop
        )
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


def draw_clips(seed: int, step: int, *, clips: int, frames: int, crop: int = SIZE) -> Tensor:
    """The rendered batch of `step`: [clips, frames, 3, crop, crop] in [0, 1].

    Most of a picture is background, which is learned at once: a crop shows part of an object.
    """
    rng = np.random.default_rng([seed, step])
    return torch.stack([_draw_clip(rng, frames, crop) for _ in range(clips)])


def _draw_clip(rng: np.random.Generator, frames: int, crop: int) -> Tensor:
    scene, start = draw_scene(rng), int(rng.integers(4096))
    path = trace_path(scene.sprites[int(rng.integers(len(scene.sprites)))], 1, start + frames // 2)
    centres = (float(path.y[0]), float(path.x[0]))
    top, left = (int(np.clip(c + rng.normal(0, 8) - crop / 2, 0, SIZE - crop)) for c in centres)
    return render(scene, frames, start)[:, :, top : top + crop, left : left + crop]


@torch.inference_mode()
def with_statistics(codec: TinyCodec, *, seed: int, clips: int = 256, frames: int = 24) -> TinyCodecConfig:
    """The configuration of `codec` with mean and deviation of its latents measured on fresh clips."""
    batches = [draw_clips(seed + 1, i, clips=16, frames=frames) for i in range(clips // 16)]
    raw = torch.cat([codec.encode_raw(batch).float() for batch in batches])
    mean, std = raw.mean((0, 2, 3, 4)), raw.std((0, 2, 3, 4))
    return replace(codec.config, latents_mean=tuple(mean.tolist()), latents_std=tuple(std.tolist()))
