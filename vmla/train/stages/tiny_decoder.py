"""Stage `tiny`: a tiny autoencoder learns to show and to make a large one's latents, from encoded clips.

The tiny decoder learns the large decoder's frames, not the original ones: no decoder of these latents can
know the details that the large encoder has lost.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plugins.errors import UserError
from vmla.train.data.shard_column import Column
from vmla.train.loop.prefetch import Prefetcher
from vmla.train.loop.throughput import Meter
from vmla.train.optim.optimizers import TrainingSchedule
from vmla.train.optim.precision import Precision, resolve
from vmla.vae import Codec
from vmla.vae.taehv import TAEHV_CONFIGS, Taehv, TaehvConfig


@dataclass(frozen=True, kw_only=True)
class TinyTraining:
    """Settings of the distillation of a tiny autoencoder from a large one."""

    schedule: TrainingSchedule
    clips: int = 4
    """Batch size, in clips."""
    frames: int = 6
    """Latent frames of a clip, from its start on: the large decoder is causal."""
    cells: int = 16
    """Side in latent cells of the part of the picture that is seen, at most."""
    noise: float = 0.1
    """Largest deviation of the noise on the (unit) latents: a denoiser's latents are never exact."""
    encoder: float = 0.1
    """Weight of the encoder's error against the decoder's."""
    precision: Precision = "auto"
    seed: int = 0


class TinyDecoderStage:
    """Distillation of a large codec into TAEHV's architecture."""

    name = "tiny"

    def __init__(
        self, teacher: Codec, latents: Tensor | Column, training: TinyTraining, source: dict[str, Any],
        device: torch.device,
    ) -> None:  # fmt: skip
        """Learn from `latents` [clips, z, frames, h, w] of `teacher`; `source` says whose these are.

        Raises:
            UserError: if no tiny architecture fits the teacher.
        """
        torch.manual_seed(training.seed)
        self.teacher, self.latents, self.training, self.source = teacher, latents, training, source
        self.schedule, self.device = training.schedule, device
        self.tiny = Taehv(config_like(teacher)).to(device)
        self.meter = Meter(resolve(training.precision, device))
        self.prefetcher = Prefetcher(self.draw)

    @property
    def model(self) -> nn.Module:
        """The tiny autoencoder, whose encoder and decoder are trained together."""
        return self.tiny

    def settings(self) -> dict[str, Any]:
        """The settings that determine the result."""
        return {"tiny": asdict(self.tiny.config), "training": asdict(self.training), "source": self.source}

    def loss(self, step: int) -> Tensor:
        """Error of the frames, and of the latents that the encoder makes of them."""
        with self.meter.waiting():
            latents, noise, frames = self.prefetcher.take(step)
        narrow = torch.autocast(self.device.type, torch.bfloat16, enabled=self.meter.dtype == torch.bfloat16)
        with self.meter.counting(latents.shape), narrow:
            shown = self.tiny.decode_raw(latents + noise)[0].float()
            made = self.tiny.encode(frames).float()
        error = shown - frames
        pixels = error.abs().mean() + 10 * error.square().mean()
        return pixels + self.training.encoder * F.mse_loss(made, latents)

    def draw(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """The batch of `step`, which depends on seed and step alone.

        Returns:
            Latents [B, z, F, h, w], noise on them, and the large decoder's frames [B, n, 3, H, W].
        """
        training = self.training
        rng = np.random.default_rng([training.seed, step])
        chosen = torch.from_numpy(np.sort(rng.integers(len(self.latents), size=training.clips)))
        clips = self.latents[chosen][:, :, : training.frames].float()
        height, width = (min(training.cells, side) for side in clips.shape[-2:])
        top, left = (int(rng.integers(whole - part + 1)) for whole, part in
                     zip(clips.shape[-2:], (height, width), strict=True))  # fmt: skip
        latents = clips[..., top : top + height, left : left + width].contiguous()
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        strength = training.noise * torch.rand(len(latents), 1, 1, 1, 1, generator=generator)
        noise = strength * torch.randn(latents.shape, generator=generator)
        with torch.no_grad():
            frames = self.teacher.decode(latents.to(self.device))[0]
        return latents.to(self.device), noise.to(self.device), frames


def config_like(teacher: Codec) -> TaehvConfig:
    """TAEHV's sizes for the latents of `teacher`.

    Raises:
        UserError: if there are none: it is made for codecs of Wan's kind.
    """
    for config in TAEHV_CONFIGS.values():
        cells, channels = 8 * config.patch, config.latent_channels
        if (channels, cells) == (teacher.latent_channels, teacher.spatial_ratio):
            break
    else:
        known = ", ".join(f"{c.latent_channels} of {8 * c.patch}" for c in TAEHV_CONFIGS.values())
        raise UserError(
            f"no TAEHV has latents of {teacher.latent_channels} channels and cells of "
            f"{teacher.spatial_ratio} pixels; there are {known}"
        )
    if (teacher.temporal_ratio, teacher.first_frames) != (Taehv.temporal_ratio, Taehv.first_frames):
        raise UserError(
            f"this codec's first latent frame is {teacher.first_frames} frames and each other one "
            f"{teacher.temporal_ratio}; TAEHV's are 1 and 4, as Wan's are"
        )
    return config
