"""Stage `decoder`: the codec's decoder learns further, while the encoder and its latents stay fixed.

So it can learn beside the denoiser, whose training set is encoded already.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmla.train.loop.parallel import CPU
from vmla.train.loop.prefetch import Prefetcher
from vmla.train.loop.throughput import Meter
from vmla.train.objectives.noise import seeded
from vmla.train.optim.optimizers import TrainingSchedule
from vmla.train.optim.precision import Precision, resolve
from vmla.train.stages.codec import reconstruction_error
from vmla.vae.tiny import TinyCodec
from vmla.world.render import coverage, render
from vmla.world.scene import Scene, draw_scene
from vmla.world.worlds import FIRST, world_named


@dataclass(frozen=True, kw_only=True)
class DecoderTraining:
    """Settings of the stage that trains the decoder on."""

    schedule: TrainingSchedule
    clips: int = 6
    frames: int = 12
    """Pixel frames of a clip."""
    noise: float = 0.3
    """Largest deviation of the noise on the (unit) latents."""
    emphasis: float = 3.0
    """How much more the pixels about an object weigh than those of plain background."""
    colour: float = 0.3
    """Weight of the error of each object's mean colour. A small ring has a tenth of the pixels of a large
    square, so that pixels alone let its hue slip."""
    world: str = FIRST.name
    precision: Precision = "auto"
    seed: int = 0


class DecoderStage:
    """Reconstruction of rendered clips from the noisy latents of a finished codec."""

    name = "decoder"

    def __init__(self, codec: TinyCodec, training: DecoderTraining, device: torch.device = CPU) -> None:
        self.codec, self.device = deepcopy(codec).to(device), device
        self.codec.encoder.requires_grad_(False)
        self.training, self.schedule = training, training.schedule
        self.meter = Meter(resolve(training.precision, device))
        self.prefetcher = Prefetcher(self.draw)

    @property
    def model(self) -> nn.Module:
        """The decoder alone; the encoder is frozen."""
        return self.codec.decoder

    def settings(self) -> dict[str, Any]:
        """The settings that determine the result."""
        # The latents' statistics differ in their last digits between machines, and nothing here reads them.
        codec = replace(self.codec.config, latents_mean=(), latents_std=())
        return {"codec": asdict(codec), "training": asdict(self.training)}

    def loss(self, step: int) -> Tensor:
        """Error of the pixels, and of the mean colour of each object in each frame."""
        training = self.training
        with self.meter.waiting():
            video, covered = (part.to(self.device) for part in self.prefetcher.take(step))
        generator = seeded(self.device, step)
        narrow = torch.autocast(self.device.type, torch.bfloat16, enabled=self.meter.dtype == torch.bfloat16)
        with self.meter.counting(video.shape), narrow:
            with torch.no_grad():
                latents = self.codec.encode_raw(video).float()
            strength = training.noise * torch.rand(
                len(video), 1, 1, 1, 1, generator=generator, device=self.device
            )
            noisy = latents + strength * torch.randn(latents.shape, generator=generator, device=self.device)
            error = self.codec.decode_raw(noisy)[0].float() - video
        near = F.max_pool3d(covered.amax(2, keepdim=True), (1, 5, 5), stride=1, padding=(0, 2, 2)) > 0
        pixels = reconstruction_error(error, near.float(), training.emphasis)
        return pixels + training.colour * colour_error(error, covered)

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of `step`: video [B, frames, 3, H, W], and what each object covers of it
        [B, frames, 2, H, W]."""
        training, world = self.training, world_named(self.training.world)
        rng = np.random.default_rng([training.seed, step])
        clips = []
        for _ in range(training.clips):
            scene, start = draw_scene(rng, world=world), int(rng.integers(4096))
            clips.append((render(scene, training.frames, start), _covered(scene, training.frames, start)))
        return torch.stack([video for video, _ in clips]), torch.stack([covered for _, covered in clips])


def _covered(scene: Scene, frames: int, start: int) -> Tensor:
    """[frames, 2, H, W]; a second object that is not there covers nothing."""
    each = [coverage(sprite, frames, start) for sprite in scene.sprites]
    return torch.stack([*each, torch.zeros_like(each[0])][:2], dim=1)


def colour_error(error: Tensor, covered: Tensor) -> Tensor:
    """Absolute and squared error of the mean colour of each object, whatever its size.

    Args:
        error: of the pixels, [B, frames, 3, H, W].
        covered: how much of each pixel each object covers, [B, frames, objects, H, W] in [0, 1].
    """
    area = covered.sum((-2, -1))  # [B, frames, objects]
    sums = torch.einsum("bfohw,bfchw->bfoc", covered, error)
    means = sums[area > 0] / area[area > 0][:, None]
    return (means.abs() + 10 * means.square()).mean()
