"""Stage `codec`: the tiny autoencoder learns to reconstruct videos."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vmla.train.loop.parallel import CPU
from vmla.train.loop.prefetch import Prefetcher
from vmla.train.loop.throughput import Meter
from vmla.train.objectives.noise import seeded
from vmla.train.optim.optimizers import TrainingSchedule
from vmla.train.optim.precision import Precision, resolve
from vmla.vae.tiny import TinyCodec, TinyCodecConfig
from vmla.world.render import coverage, render
from vmla.world.scene import draw_scene, trace_path
from vmla.world.worlds import FIRST, SIZE, World, world_named


@dataclass(frozen=True, kw_only=True)
class CodecTraining:
    """Settings of the stage that trains the codec."""

    schedule: TrainingSchedule
    frames: int = 12
    """Pixel frames of a clip."""
    crop: int = 32
    """Side in pixels of the part of each clip that the first steps see, about one of its objects."""
    crops: int = 16
    """Clips of a batch of crops."""
    crop_steps: int
    """Steps on crops. The others see whole frames: far from every border, a crop teaches nothing."""
    wholes: int = 6
    """Clips of a batch of whole frames."""
    noise: float = 0.2
    """Largest deviation of the noise on the (unit) latents: a denoiser's latents are never exact."""
    emphasis: float = 3.0
    """How much more the pixels about an object weigh than those of plain background."""
    decorrelation: float = 0.0
    """Weight of the mean squared correlation between two channels of the latents: where few directions hold
    most of the energy, a denoiser's error is mostly theirs."""
    world: str = FIRST.name
    precision: Precision = "auto"
    seed: int = 0


class CodecStage:
    """Reconstruction of rendered clips, through noisy latents."""

    name = "codec"

    def __init__(self, codec: TinyCodecConfig, training: CodecTraining, device: torch.device = CPU) -> None:
        torch.manual_seed(training.seed)
        self.model = TinyCodec(codec).to(device)
        self.training, self.device = training, device
        self.schedule = training.schedule
        self.meter = Meter(resolve(training.precision, device))
        self.prefetcher = Prefetcher(self.draw)

    def settings(self) -> dict[str, Any]:
        """The settings that determine the result."""
        return {"codec": asdict(self.model.config), "training": asdict(self.training)}

    def loss(self, step: int) -> Tensor:
        """Mean absolute and squared error, and a pull of the raw latents towards mean 0, deviation 1."""
        settings = self.training
        with self.meter.waiting():
            video, near = (part.to(self.device) for part in self.prefetcher.take(step))
        generator = seeded(self.device, step)
        narrow = torch.autocast(self.device.type, torch.bfloat16, enabled=self.meter.dtype == torch.bfloat16)
        with self.meter.counting(video.shape), narrow:
            latents = self.model.encode_raw(video).float()
            strength = settings.noise * torch.rand(
                len(video), 1, 1, 1, 1, generator=generator, device=self.device
            )
            noisy = latents + strength * torch.randn(latents.shape, generator=generator, device=self.device)
            error = self.model.decode_raw(noisy)[0].float() - video
        # Without a pull towards 1 the latents grow, which drowns the noise.
        mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
        pixels = reconstruction_error(error, near, settings.emphasis)
        units = pixels + 0.01 * (mean.square().mean() + std.log().square().mean())
        return units + settings.decorrelation * _correlation(latents) if settings.decorrelation else units

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of `step`: crops at first, whole frames later; see `draw_clips`."""
        settings = self.training
        crops = step < settings.crop_steps
        clips, size = (settings.crops, settings.crop) if crops else (settings.wholes, SIZE)
        return draw_clips(
            settings.seed, step, clips=clips, frames=settings.frames, crop=size, world=settings.world
        )


def reconstruction_error(error: Tensor, near: Tensor, emphasis: float) -> Tensor:
    """Mean absolute and squared error; where `near` is 1, it weighs `1 + emphasis` times as much."""
    weight = 1 + emphasis * near
    return (weight / weight.mean() * (error.abs() + 10 * error.square())).mean()


def _correlation(latents: Tensor) -> Tensor:
    """Mean squared correlation between different channels of latents [B, z, F, h, w]."""
    correlation = latents.transpose(0, 1).flatten(1).corrcoef()
    return correlation.triu(1).square().sum() * 2 / (len(correlation) * (len(correlation) - 1))


def draw_clips(
    seed: int, step: int, *, clips: int, frames: int, crop: int = SIZE, world: str = FIRST.name
) -> tuple[Tensor, Tensor]:
    """The rendered batch of `step`: video [clips, frames, 3, crop, crop] in [0, 1], and where objects are.

    Most of a picture is background, which is learned at once: a crop shows part of an object.

    Returns:
        The video, and [clips, frames, 1, crop, crop]: 1 on and about an object, 0 elsewhere.
    """
    rng = np.random.default_rng([seed, step])
    pairs = [_draw_clip(rng, frames, crop, world_named(world)) for _ in range(clips)]
    return torch.stack([video for video, _ in pairs]), torch.stack([near for _, near in pairs])


def _draw_clip(rng: np.random.Generator, frames: int, crop: int, world: World) -> tuple[Tensor, Tensor]:
    scene, start = draw_scene(rng, world=world), int(rng.integers(4096))
    path = trace_path(scene.sprites[int(rng.integers(len(scene.sprites)))], 1, start + frames // 2)
    centres = (float(path.y[0]), float(path.x[0]))
    top, left = (int(np.clip(c + rng.normal(0, 8) - crop / 2, 0, SIZE - crop)) for c in centres)
    part = slice(top, top + crop), slice(left, left + crop)
    covered = torch.stack([coverage(sprite, frames, start) for sprite in scene.sprites]).amax(0, keepdim=True)
    near = (F.max_pool2d(covered, 5, stride=1, padding=2) > 0).float().transpose(0, 1)
    return render(scene, frames, start)[..., part[0], part[1]], near[..., part[0], part[1]]


@torch.inference_mode()
def with_statistics(
    codec: TinyCodec, *, seed: int, world: str = FIRST.name, clips: int = 256, frames: int = 24
) -> TinyCodecConfig:
    """The configuration of `codec` with mean and deviation of its latents measured on fresh clips."""
    batches = [draw_clips(seed + 1, i, clips=16, frames=frames, world=world)[0] for i in range(clips // 16)]
    raw = torch.cat([codec.encode_raw(batch).float() for batch in batches])
    mean, std = raw.mean((0, 2, 3, 4)), raw.std((0, 2, 3, 4))
    return replace(codec.config, latents_mean=tuple(mean.tolist()), latents_std=tuple(std.tolist()))
