"""The largest inputs of linear layers and of attention, observed on rollouts, as JSON beside the engine.

The rollouts are those of inference: same sampler, noise and cache, every denoising step and the clean pass,
from the empty cache until the window has moved on. The largest magnitude is recorded. A percentile was tried
and does not help, because e4m3 is a floating-point format (see `export.lowering.fp8`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from export.engine.manifest import Rollouts
from plugins.atomic_files import atomic_write_text
from plugins.documents.json_file import read_json
from plugins.documents.typed import typed
from plugins.errors import UserError
from vmla.attention import HeadAttention, LatentAttention, Window
from vmla.transformer import VideoMLA
from vmla.weights.checkpoint import Checkpoint
from vmla.world.caption import describe
from vmla.world.scene import draw_scene

NAME = "calibration.json"

ATTENDED = ("query", "keys", "values")
"""The inputs of self-attention, in the order in which it takes them."""

PROMPTS = (
    "A cat walks across a sunlit kitchen floor",
    "Waves break on a rocky coast under a grey sky, seen from the air",
    "A close-up of hands kneading dough on a wooden table",
    "A red train crosses a snowy valley at dusk",
    "Two children run through a field of tall grass, handheld camera",
    "Neon signs are reflected in a wet street at night",
)
"""Prompts for models that were trained on real videos."""


def draw_rollouts(checkpoint: Checkpoint, *, prompts: int = 4, chunks: int = 6, seed: int = 0) -> Rollouts:
    """Rollouts of `prompts` prompts that fit what `checkpoint` was trained on, drawn from `seed`."""
    rng = np.random.default_rng([seed, 11])  # 11: a stream apart from those of training and grading
    world = checkpoint.world()
    if world is not None:
        texts = [describe(draw_scene(rng, world=world)) for _ in range(prompts)]
    else:
        texts = [PROMPTS[i % len(PROMPTS)] for i in range(prompts)]
    return Rollouts(prompts=tuple(texts), seed=seed, chunks=chunks)


class Drive(Protocol):
    """Rolls out a model in float32 and returns nothing: `runtime.rollout.calibration.drive`."""

    def __call__(
        self, model: VideoMLA, checkpoint: Checkpoint, prompts: Sequence[str], *, seed: int, chunks: int
    ) -> None:
        """Prompt number i is rolled out with seed `seed` + i, for `chunks` chunks."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The largest inputs of linear layers and of self-attention, and the rollouts they were observed on."""

    model_hash: str
    rollouts: Rollouts
    passes: int
    """Passes of the denoiser, each over all videos at once."""
    largest: dict[str, float]
    """The largest magnitude of the inputs of each layer, by its name, and of those of each self-attention, by
    `attention_input_names`."""

    def __post_init__(self) -> None:
        if odd := [name for name, value in self.largest.items() if value < 0]:
            raise UserError(f"the largest input of {odd[0]} is negative")

    def text(self) -> str:
        """The calibration as JSON; equal calibrations have equal texts."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @property
    def digest(self) -> str:
        """SHA-256 of `text`, and so of the file."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Write it to `path`, whole or not at all."""
        atomic_write_text(path, self.text())

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read the calibration in the file `path`.

        Raises:
            UserError: if the file is not a calibration.
        """
        mend = "make one with: vmla-export calibrate"
        return typed(read_json(path, mend=mend), cls, f"{path} is not a calibration", mend=mend)

    def of_layers(self, layers: Collection[str], model_hash: str) -> dict[str, float]:
        """The largest inputs of `layers`.

        Raises:
            UserError: if this is the calibration of another model, or lacks a layer.
        """
        if self.model_hash != model_hash:
            raise UserError("the calibration is of other weights; make one with: vmla-export calibrate")
        if missing := [name for name in layers if name not in self.largest]:
            raise UserError(f"the calibration lacks {missing[0]}; make one with: vmla-export calibrate")
        return {name: self.largest[name] for name in layers}

    def lines(self, layers: Collection[str] | None = None) -> Iterator[str]:
        """The range of the largest inputs of `layers`, or of all, by kind: lines for a person to read."""
        watched = self.rollouts
        yield (
            f"calibrated on {len(watched.prompts)} prompts, {watched.chunks} chunks, {self.passes} passes, "
            f"seed {watched.seed}; largest inputs:"
        )
        kinds: dict[str, list[float]] = {}
        for name in self.largest if layers is None else layers:
            kinds.setdefault(re.sub(r"^blocks\.\d+\.", "", name), []).append(self.largest[name])
        for kind, values in kinds.items():
            yield f"  {kind}: {min(values):.3g} to {max(values):.3g} in {len(values)} layers"


def attention_input_names(attention: str) -> tuple[str, ...]:
    """The names in a calibration of what the self-attention called `attention` takes, in order."""
    return tuple(f"{attention}.{part}" for part in ATTENDED)


def calibrate(model: VideoMLA, checkpoint: Checkpoint, rollouts: Rollouts, drive: Drive) -> Calibration:
    """Observe all linear layers and self-attentions of `model`, which is `checkpoint`'s, on `rollouts`.

    Raises:
        UserError: if an input is not finite.
    """
    with observed(model) as seen:
        drive(model, checkpoint, rollouts.prompts, seed=rollouts.seed, chunks=rollouts.chunks)
    # Six digits: the file stays readable, and scales are powers of two anyway.
    largest = {name: float(f"{float(value):.6g}") for name, (_, value) in seen.items()}
    if strange := [name for name, value in largest.items() if not np.isfinite(value)]:
        raise UserError(f"the inputs of {strange[0]} are not finite; this model cannot be calibrated")
    passes = max(count for count, _ in seen.values())
    digest = checkpoint.model_hash()
    return Calibration(model_hash=digest, rollouts=rollouts, passes=passes, largest=largest)


@contextmanager
def observed(model: nn.Module) -> Iterator[dict[str, tuple[int, Tensor]]]:
    """Inside, a dictionary collects the calls and largest |inputs| of linear layers and self-attentions.

    Nothing is read from the device; NaN stays NaN. What is never called has no entry.
    """
    seen: dict[str, tuple[int, Tensor]] = {}

    def see(name: str, x: Tensor) -> None:
        largest = x.abs().amax()
        count, before = seen.get(name, (0, largest))
        seen[name] = count + 1, torch.maximum(before, largest)

    handles = []
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear):
            handles.append(part.register_forward_pre_hook(partial(_watch_layer, see, name)))
        elif isinstance(part, LatentAttention | HeadAttention):
            handles.append(part.register_forward_pre_hook(partial(_watch_attention, see, name)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


See = Callable[[str, Tensor], None]
"""Takes the name of an input and its values."""


def _watch_layer(see: See, name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    see(name, inputs[0])


def _watch_attention(see: See, name: str, attention: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give the attention called `name` a window that shows what is attended to."""
    x, cached, window = inputs
    watched = _WatchedWindow(*window)
    watched.watch = partial(_see_attended, see, name, window.valid)
    return x, cached, watched


def _see_attended(
    see: See, name: str, valid: Tensor | None, query: Tensor, keys: Tensor, values: Tensor
) -> None:
    """Show queries, keys and values to `see`, without those of empty slots."""
    if valid is not None:
        keys, values = (torch.where(valid[:, None], part, 0) for part in (keys, values))
    for part, x in zip(attention_input_names(name), (query, keys, values), strict=True):
        see(part, x)


class _WatchedWindow(Window):
    """A window that shows what is attended to before it attends."""

    watch: Callable[[Tensor, Tensor, Tensor], None]

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        self.watch(query, keys, values)
        return super().attend(query, keys, values)
