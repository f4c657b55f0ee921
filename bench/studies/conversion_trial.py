"""One start of latent attention: a per-head model converted in one way, measured, then trained a little."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from plugins.documents.json_file import read_json
from plugins.errors import UserError
from vmla.attention import LatentAttention
from vmla.config import ModelConfig
from vmla.train.cli.convert_options import calibration_on
from vmla.train.data.latents import LatentSet
from vmla.train.loop.loop import train
from vmla.train.loop.state import refuse_other_settings
from vmla.train.recipes.from_checkpoint import DistillationRecipe
from vmla.train.stages.denoiser import DenoiserStage
from vmla.transformer import Block, VideoMLA
from vmla.weights.checkpoint import Checkpoint, open_checkpoint
from vmla.weights.conversion.activations import CalibrationBatch, TracedLayer, layers_of
from vmla.weights.conversion.convert import REPORT, Conversion, output_error
from vmla.weights.conversion.spectral import Choices
from vmla.weights.formats.files import write_json
from vmla.weights.source import Source, open_source

HELD_SHARE, MOST_HELD = 8, 64
"""One clip in this many is held out from conversion and training, and at most so many in all."""
JUDGED = 8
"""Batches of held-out clips that a loss is the mean of, and clips that an output error is measured on."""
CLIPS = 32
"""Clips of calibration by default: their tokens suffice for the second moment of a small model."""


@dataclass(frozen=True, kw_only=True)
class ConversionVariant:
    """One way to convert a model, with a name."""

    name: str
    choices: Choices = Choices()
    clips: int = CLIPS
    """Number of calibration clips."""
    noise: bool = False
    """Whether it is calibrated on noise in place of clips."""


@dataclass(frozen=True, kw_only=True)
class ConversionSource:
    """A per-head model, the clips that its conversions are made with, and those that they are judged on."""

    checkpoint: Checkpoint
    seed: int
    """Seed of random projections and batches; each model has another."""
    recipe: DistillationRecipe
    data: LatentSet
    held: LatentSet

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, clips: LatentSet, recipe: DistillationRecipe, seed: int
    ) -> ConversionSource:
        """A start whose `clips` are divided into those to convert with and those to judge on.

        Raises:
            UserError: if the model has no attention to convert.
        """
        if checkpoint.model_config().layout != "mha":
            raise UserError(f"{checkpoint.folder} has latent attention; give a model of the layout mha")
        data, held = divided(clips)
        return cls(checkpoint=checkpoint, seed=seed, recipe=recipe, data=data, held=held)

    @cached_property
    def source(self) -> Source:
        """The weights that are converted."""
        return open_source(self.checkpoint.folder)

    @property
    def config(self) -> ModelConfig:
        """The configuration of the converted models."""
        return replace(self.source.config, layout="mla")

    @cached_property
    def seen(self) -> list[TracedLayer]:
        """The layers of the source at work on held-out clips."""
        return list(layers_of(self.source, self.calibration(self.held, JUDGED)))

    def calibration(self, clips: LatentSet, count: int) -> CalibrationBatch:
        """Calibration inputs from the first `count` of `clips`."""
        return calibration_on(clips, self.source.config, count=count, seed=self.seed)

    def loss(self, model: VideoMLA) -> float:
        """Teacher-forcing loss on held-out clips: the same batches and noise for every model."""
        forcing = self.recipe.forcing
        clips = min(forcing.clips, len(self.held.latents))
        settings = replace(forcing, clips=clips, precision="float32", compiled=False)
        stage = DenoiserStage(model.config, settings, self.held, model=model)
        with torch.no_grad():
            return statistics.mean(float(stage.loss(step)) for step in range(JUDGED))


def divided(clips: LatentSet) -> tuple[LatentSet, LatentSet]:
    """Most clips, and the last ones, which are held out.

    Raises:
        UserError: if there are too few.
    """
    count = len(clips.latents)
    held = min(max(count // HELD_SHARE, 1), MOST_HELD)
    if count < 2:
        raise UserError("one clip cannot be divided into those to convert with and those to judge on")
    first, last = torch.arange(count).split([count - held, held])
    used, kept = (LatentSet(clips.latents[part], clips.text[part], clips.settings) for part in (first, last))
    return used, kept


@dataclass(frozen=True, kw_only=True)
class ConversionTrial:
    """One variant of one model, in a folder of its own."""

    start: ConversionSource
    variant: ConversionVariant
    heal: int
    """Steps of training after the conversion."""
    folder: Path
    report: Callable[[str], None]

    def result(self) -> dict[str, Any]:
        """The result, read if it exists, else made.

        Raises:
            UserError: if the folder holds a trial with other settings.
        """
        self._claim()
        path = self.folder / "result.json"
        if not path.exists():
            write_json(path, self._made())
        return dict(read_json(path))

    def _claim(self) -> None:
        """Record the trial's settings in its folder, or compare them with those recorded."""
        path, settings = self.folder / "settings.json", self._settings()
        if path.exists():
            refuse_other_settings(read_json(path), settings, path)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)

    def _made(self) -> dict[str, Any]:
        model, energies = self._converted()
        found = {
            "checkpoint": str(self.start.checkpoint.folder),
            "variant": self.variant.name,
            "energy": energies,
            "output_error": [
                output_error(cast(LatentAttention, cast(Block, block).attn1), seen, model.config)
                for block, seen in zip(model.blocks, self.start.seen, strict=True)
            ],
            "loss": self.start.loss(model),
        }
        return found | {"healed": self._healed(model) if self.heal else None}

    def _converted(self) -> tuple[VideoMLA, dict[str, float]]:
        """The model as the command writes it, and the mean over its layers of each energy kept."""
        start, variant, folder = self.start, self.variant, self.folder / "converted"
        shutil.rmtree(folder, ignore_errors=True)
        if variant.noise:
            inputs = CalibrationBatch.noise(start.source.config, clips=variant.clips, seed=start.seed)
        else:
            inputs = start.calibration(start.data, variant.clips)
        Conversion(start.source, start.config, self._choices(), inputs).write(folder, self.report)
        layers = [layer["energy"] for layer in read_json(folder / REPORT)["layers"]]
        # The report of a random start says what a spectral one would have kept.
        names = layers[0] if variant.choices.init == "spectral" else {}
        energies = {name: statistics.mean(layer[name] for layer in layers) for name in names}
        return open_checkpoint(folder).transformer(), energies

    def _healed(self, model: VideoMLA) -> float:
        """The held-out loss of the averaged weights after some steps of the recipe's stage `forcing`."""
        forcing = self.start.recipe.forcing
        settings = replace(forcing, schedule=replace(forcing.schedule, steps=self.heal))
        stage = DenoiserStage(model.config, settings, self.start.data, model=model.requires_grad_(True))
        average = train(stage, self.folder / "healing", report=self.report)
        assert average is not None  # it was not stopped, so there are weights
        model.load_state_dict({**model.state_dict(), **average})
        return self.start.loss(model.requires_grad_(False))

    def _choices(self) -> Choices:
        return replace(self.variant.choices, seed=self.start.seed)

    def _settings(self) -> dict[str, Any]:
        """The settings that must agree when a trial is resumed."""
        return {
            "source": self.start.checkpoint.model_hash(),
            "choices": asdict(self._choices()),
            "calibration": {"clips": self.variant.clips, "noise": self.variant.noise},
            "training": asdict(self.start.recipe.forcing),
            "heal": self.heal,
            "data": self.start.data.settings,
        }
