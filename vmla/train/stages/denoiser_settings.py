"""Settings of the stage `denoiser`."""

from __future__ import annotations

from dataclasses import dataclass

from plugins.errors import UserError
from vmla.train.objectives.teacher_forcing import Forcing
from vmla.train.optim.optimizers import TrainingSchedule
from vmla.train.optim.precision import Precision


@dataclass(frozen=True, kw_only=True)
class DenoiserTraining:
    """Settings of the stage that trains the denoiser."""

    schedule: TrainingSchedule
    forcing: Forcing
    clips: int = 16
    """Batch size, in clips."""
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
    single_steps: int = 0
    """Steps at the start whose clips show one object, where their number is known."""
    pairs: float | None = None
    """Share of later clips that show two objects, where their number is known; None: as they come."""
    prompt_dropout: float = 0.0
    """Share of clips whose prompt is dropped, for guidance: their text is zeros, like the padding of every
    prompt."""
    alignment: float = 0.0
    """Weight of the representation alignment loss; see `vmla.train.objectives.alignment`."""
    alignment_layer: int = 3
    """Number of blocks after which the tokens are aligned."""
    precision: Precision = "auto"
    compiled: bool = False
    """Compile the blocks first: a minute at the start, then 1.6 times as many steps on two CPU cores."""
    at_once: bool = False
    """A clip in one masked pass, not chunk by chunk: the same loss, for forcing that is `fixed`."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.at_once and not self.forcing.fixed:
            raise UserError("a clip passes at once only with one copy and no estimates in its past")
        if self.at_once and self.alignment:
            raise UserError("a clip that passes at once is not aligned with its labels; use alignment 0")
        for name in ("prompt_dropout", "pairs"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise UserError(f"{name} is {share}; it is a share, from 0 to 1")
