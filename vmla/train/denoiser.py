"""Stage `denoiser`: teacher forcing over stored latents."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from vmla.cache import CacheLayout
from vmla.config import ModelConfig
from vmla.errors import UserError
from vmla.train.forcing import Forcing, forcing_loss, forcing_loss_at_once
from vmla.train.latents import LatentSet
from vmla.train.noise import seeded
from vmla.train.optimizers import Schedule
from vmla.train.parallel import Calls, Passes
from vmla.train.speed import Meter
from vmla.transformer import Block, VideoMLA
from vmla.unrolled import Unrolling


@dataclass(frozen=True, kw_only=True)
class DenoiserTraining:
    """Settings of the stage."""

    schedule: Schedule
    forcing: Forcing
    clips: int = 16
    """Clips of a batch."""
    chunks: int = 7
    """Chunks of a training rollout."""
    jumps: float = 0.5
    """Share of batches whose rollout leaves out part of the clip after its first chunk."""
    opening_steps: int = 0
    """Steps at the start that only learn to make a first chunk from text, as image pretraining does."""
    openings: float = 0.0
    """Share of the later batches that do so."""
    opening_clips: int = 192
    """Clips of a batch of first chunks."""
    prompt_dropout: float = 0.0
    """Share of clips that are told nothing: zeros, which is what stands behind a prompt's end."""
    bfloat16: bool = True
    compiled: bool = False
    """Compile the blocks first: a minute at the start, then 1.6 times as many steps on two CPU cores."""
    at_once: bool = False
    """A clip in one masked pass, not chunk by chunk: the same loss, for forcing that is `fixed`."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.at_once and not self.forcing.fixed:
            raise UserError("a clip passes at once only with one copy and no estimates in its past")
        if not 0 <= self.prompt_dropout <= 1:
            raise UserError(f"prompt_dropout is {self.prompt_dropout}; it is a share, from 0 to 1")


class DenoiserStage:
    """The loss of `vmla.train.forcing` on batches drawn by (seed, step)."""

    name = "denoiser"

    def __init__(
        self,
        config: ModelConfig,
        training: DenoiserTraining,
        data: LatentSet,
        *,
        model: VideoMLA | None = None,
        calls: Calls | None = None,
    ) -> None:
        """Train `model`, or a fresh one; `calls` computes its passes, `narrowed` if not given."""
        torch.manual_seed(training.seed)
        self.model = initialised(VideoMLA(config)) if model is None else model
        self.meter = Meter(bfloat16=training.bfloat16)
        self.calls = self.meter.passes(narrowed if calls is None else calls)
        if training.compiled:
            compile_blocks(self.model)
        self.layout = CacheLayout.of(config)
        self.training, self.schedule, self.data = training, training.schedule, data

    def settings(self) -> dict[str, Any]:
        """All that determines the result."""
        return {
            "model": asdict(self.model.config),
            "training": asdict(self.training),
            "data": self.data.settings,
        }

    def loss(self, step: int) -> Tensor:
        """Velocity error of one teacher-forced rollout over a batch of clips."""
        with self.meter.waiting():
            latents, text, numbers = self.draw(step)
        dtype = torch.bfloat16 if self.training.bfloat16 else torch.float32
        device = next(self.model.parameters()).device
        generator = seeded(device, self.training.seed * 1_000_003 + step)
        passes = self.calls(self.model, dtype)
        text_kv, forcing = passes.encode_text(text.to(device)), self.training.forcing
        rest = self.layout, latents.to(device), text_kv, numbers, forcing, generator
        if self.training.at_once and len(numbers) > 1:  # one chunk is one pass anyway
            return forcing_loss_at_once(passes.unrolled, *rest)
        return forcing_loss(passes.step, *rest)

    def draw(self, step: int) -> tuple[Tensor, Tensor, list[int]]:
        """The batch of `step`: latents of the chosen chunks, text embeddings, chunk numbers."""
        rng = np.random.default_rng([self.training.seed, step, 3])
        if step < self.training.opening_steps or rng.random() < self.training.openings:
            latents, text, numbers = *self._draw_openings(rng), [0]
        else:
            latents, text, numbers = self._draw_rollouts(rng)
        # After all other draws: clips are the same whatever is dropped.
        return latents, self._drop_prompts(text, rng), numbers

    def _drop_prompts(self, text: Tensor, rng: np.random.Generator) -> Tensor:
        """Embeddings [clips, tokens, width] with zeros for those clips that are told nothing."""
        if self.training.prompt_dropout == 0:
            return text
        dropped = torch.from_numpy(rng.random(len(text)) < self.training.prompt_dropout)
        return text.masked_fill(dropped[:, None, None].to(text.device), 0)

    def _draw_rollouts(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, list[int]]:
        """Clips from their beginning on, or with a jump after their first chunk."""
        clips = torch.from_numpy(rng.choice(len(self.data.latents), self.training.clips, replace=False))
        size, count = self.model.config.chunk, self.training.chunks
        last = self.data.latents.shape[2] // size - (count - 1)
        start = int(rng.integers(2, last + 1)) if last > 1 and rng.random() < self.training.jumps else 1
        numbers = [0, *range(start, start + count - 1)]
        frames = torch.tensor([number * size + offset for number in numbers for offset in range(size)])
        return self.data.latents[clips][:, :, frames].float(), self.data.text[clips].float(), numbers

    def _draw_openings(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Any chunk of any clip, as if a video began there."""
        size, count = self.model.config.chunk, self.training.opening_clips
        clips = torch.from_numpy(rng.integers(len(self.data.latents), size=count))
        starts = torch.from_numpy(rng.integers(self.data.latents.shape[2] // size, size=count)) * size
        frames = starts[:, None] + torch.arange(size)
        latents = self.data.latents[clips[:, None], :, frames].transpose(1, 2)
        return latents.float(), self.data.text[clips].float()


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

    def unrolled(latents: Tensor, timestep: Tensor, text_kv: Tensor, clip: Unrolling) -> Tensor:
        inputs = (latents.to(dtype), timestep, text_kv, clip)
        return functional_call(_Method(model, "unrolled"), prefixed, inputs)

    return Passes(step, encode_text, unrolled)


class _Method(torch.nn.Module):
    """Another of a model's methods as a forward."""

    def __init__(self, model: VideoMLA, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *inputs: Any) -> Tensor:
        """See the method."""
        return getattr(self.model, self.name)(*inputs)  # type: ignore[no-any-return]


def compile_blocks(*models: VideoMLA) -> None:
    """Compile the block once for all layers of all models; needs a C++ compiler on a CPU."""
    forward = torch.compile(Block.forward, dynamic=False)
    for block in (block for model in models for block in model.blocks):
        block.forward = MethodType(forward, block)  # type: ignore[method-assign]


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
