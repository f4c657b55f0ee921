"""Stage `denoiser`: teacher forcing over stored latents."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from vmla.cache import CacheSpec
from vmla.config import ModelConfig
from vmla.packed_sequence import PackedClip
from vmla.train.data.latents import LatentSet
from vmla.train.loop.parallel import CPU, Calls, Passes
from vmla.train.loop.throughput import Meter
from vmla.train.objectives.alignment import alignment_loss, attach_aligner, watched
from vmla.train.objectives.noise import seeded
from vmla.train.objectives.teacher_forcing import forcing_loss, forcing_loss_at_once
from vmla.train.optim.precision import resolve
from vmla.train.stages.batches import Batch, draw_batch
from vmla.train.stages.denoiser_settings import DenoiserTraining
from vmla.transformer import VideoMLA, compile_blocks


class DenoiserStage:
    """The loss of `vmla.train.objectives.teacher_forcing` on batches drawn by (seed, step)."""

    name = "denoiser"

    def __init__(
        self,
        config: ModelConfig,
        training: DenoiserTraining,
        data: LatentSet,
        *,
        model: VideoMLA | None = None,
        calls: Calls | None = None,
        device: torch.device = CPU,
    ) -> None:
        """Train `model`, or a fresh one on `device`; `calls` computes its passes, `narrowed` if not given."""
        torch.manual_seed(training.seed)
        self.model = initialised(VideoMLA(config)).to(device) if model is None else model
        self.meter = Meter(resolve(training.precision, next(self.model.parameters()).device))
        self.calls = self.meter.passes(narrowed if calls is None else calls)
        if training.compiled:
            compile_blocks(self.model)
        if training.alignment:
            attach_aligner(self.model, data.labels)
        self.cache_spec = CacheSpec.of(config)
        self.training, self.schedule, self.data = training, training.schedule, data

    def settings(self) -> dict[str, Any]:
        """The settings that determine the result."""
        return {
            "model": self.model.config.to_dict(),
            "training": asdict(self.training),
            "data": self.data.settings,
        }

    def loss(self, step: int) -> Tensor:
        """Velocity error of one teacher-forced rollout over a batch of clips, and the alignment loss."""
        with self.meter.waiting():
            batch = self.draw(step)
        training, device = self.training, next(self.model.parameters()).device
        generator = seeded(device, training.seed * 1_000_003 + step)
        passes = self.calls(self.model, self.meter.dtype)
        text_kv = passes.encode_text(batch.text.to(device))
        rest = self.cache_spec, batch.latents.to(device), text_kv, batch.numbers, training.forcing, generator
        if training.at_once and len(batch.numbers) > 1:  # one chunk is one pass anyway
            return forcing_loss_at_once(passes.forward_packed, *rest)
        if not training.alignment:
            return forcing_loss(passes.step, *rest)
        with watched(self.model, training.alignment_layer) as seen:
            velocity = forcing_loss(passes.step, *rest)
        return velocity + training.alignment * alignment_loss(self.model, seen, batch.labels, batch.numbers)

    def draw(self, step: int) -> Batch:
        """The batch of `step`; it depends on seed and step alone."""
        return draw_batch(self.training, self.data, self.cache_spec.chunks, step)


def narrowed(model: VideoMLA, dtype: torch.dtype) -> Passes:
    """The model's passes, computed in `dtype` from its own float32 weights.

    One cast of each weight for all passes of a rollout; gradients arrive at the float32 weights.
    """
    weights = {name: parameter.to(dtype) for name, parameter in model.named_parameters()}
    prefixed = {f"model.{name}": weight for name, weight in weights.items()}

    def step(latents: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        return functional_call(model, weights, (latents.to(dtype), *others))

    def encode_text(text: Tensor) -> Tensor:
        return functional_call(_Method(model, "encode_text"), prefixed, (text.to(dtype),))

    def forward_packed(latents: Tensor, timestep: Tensor, text_kv: Tensor, clip: PackedClip) -> Tensor:
        inputs = (latents.to(dtype), timestep, text_kv, clip)
        return functional_call(_Method(model, "forward_packed"), prefixed, inputs)

    return Passes(step, encode_text, forward_packed)


class _Method(torch.nn.Module):
    """Another of a model's methods as a forward."""

    def __init__(self, model: VideoMLA, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *inputs: Any) -> Tensor:
        """Call the method that this module wraps."""
        return getattr(self.model, self.name)(*inputs)  # type: ignore[no-any-return]


def initialised(model: VideoMLA) -> VideoMLA:
    """Start as a residual identity: gates and head at zero, matrices orthogonal in spirit (Xavier)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.endswith(("time_proj.weight", "proj_out.weight")):
            torch.nn.init.zeros_(parameter)
        elif name.endswith("scale_shift_table"):
            torch.nn.init.normal_(parameter, std=0.02)
    return model
