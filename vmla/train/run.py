"""A whole training run, stage after stage, in one folder; a second run resumes where the first stopped."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from vmla.cli.stopping import Stop
from vmla.text import TextEncoder
from vmla.train.data.latents import LatentSet, LatentSettings, make_latents
from vmla.train.loop.log import Report
from vmla.train.loop.loop import Stage, Watcher, train
from vmla.train.loop.parallel import CPU, Parallel
from vmla.train.monitoring.samples import Samples, embedded
from vmla.train.objectives.alignment import detach_aligner
from vmla.train.recipes.from_scratch import PretrainingRecipe
from vmla.train.stages import STAGES
from vmla.train.stages.codec import CodecStage, with_statistics
from vmla.train.stages.decoder import DecoderStage
from vmla.train.stages.denoiser import DenoiserStage
from vmla.train.stages.text_encoder import TextStage
from vmla.transformer import VideoMLA
from vmla.vae.tiny import TinyCodec


class Stopped(Exception):  # noqa: N818 - no error
    """A stage made as many steps as were asked for and is not finished: nothing may build on it."""


class TrainingRun:
    """One recipe in one folder. Each part trains when it is first asked for."""

    def __init__(
        self,
        recipe: PretrainingRecipe,
        folder: Path,
        report: Report,
        *,
        stop_after: int | None = None,
        watchers: Sequence[Watcher] = (),
        samples: int | None = None,
        stop: Stop | None = None,
        device: torch.device = CPU,
    ) -> None:
        """A run in `folder`, which continues what is there.

        Args:
            recipe: what is trained, and how.
            folder: keeps the states and logs of all stages.
            report: takes a line after each step.
            stop_after: steps of the current stage; all of them if not given.
            watchers: see every step.
            samples: steps between two sets of the denoiser's sample clips; none are made if not given.
            stop: ends the run after the current step.
            device: trains. What was trained is kept in main memory, so another device may continue a run.
        """
        self.recipe, self.folder, self.report = recipe, folder, report
        self.stop_after, self.watchers, self.samples = stop_after, watchers, samples
        self.stop, self.device = stop, device

    def until(self, stage: str) -> bool:
        """Train up to and including `stage`, or for `stop_after` steps of one of its stages.

        Returns:
            Whether it is finished.
        """
        try:
            for name in STAGES[: STAGES.index(stage) + 1]:
                getattr(self, name)()
        except Stopped:
            return False
        return True

    def codec(self) -> TinyCodec:
        """The trained autoencoder, with the statistics of its latents; it encodes the training set."""
        return self._codec

    @cached_property
    def _codec(self) -> TinyCodec:
        recipe = self.recipe
        stage = CodecStage(recipe.codec, recipe.codec_training, self.device)
        _train(stage.model, stage, self)
        config = with_statistics(
            stage.model, seed=recipe.codec_training.seed, world=recipe.codec_training.world
        )
        codec = TinyCodec(config)
        codec.load_state_dict(stage.model.state_dict())
        return codec.eval()

    def decoder(self) -> TinyCodec:
        """The finished model's autoencoder: `codec`, its decoder trained further if the recipe says so."""
        if self.recipe.decoder_training is None:
            return self.codec()
        stage = DecoderStage(self.codec(), self.recipe.decoder_training, self.device)
        _train(stage.model, stage, self)
        return stage.codec.to(CPU).eval()

    def text(self) -> TextEncoder:
        """The trained text encoder with its tokenizer."""
        stage = self._text_stage()
        _train(stage.model, stage, self)
        return stage.encoder

    def _text_stage(self) -> TextStage:
        recipe = self.recipe
        return TextStage(recipe.text, recipe.model.text_tokens, recipe.text_training, self.device)

    def latents(self) -> LatentSet:
        """The training set: rendered clips, encoded by the trained codec."""
        return self._rendered(self.recipe.latents, "latents")

    def _rendered(self, settings: LatentSettings, name: str) -> LatentSet:
        """Clips of `settings` in the folder's subfolder `name`."""
        known = self._text_stage().settings()
        codec, text = deepcopy(self.codec()).to(self.device), self.text()
        text.encoder.to(self.device)
        folder = self.folder / name
        return make_latents(settings, codec, text, known, folder, self.report, device=self.device).to(
            self.device
        )

    def denoiser(self) -> VideoMLA:
        """The trained transformer, before its refinement."""
        recipe = self.recipe
        stage = DenoiserStage(recipe.model, recipe.denoiser_training, self.latents(), device=self.device)
        _train(stage.model, stage, self, self._clips(stage))
        return detach_aligner(stage.model)

    def refine(self) -> VideoMLA:
        """The finished transformer: `denoiser`, trained further if the recipe says so."""
        recipe, model = self.recipe, self.denoiser()
        if recipe.refinement is None:
            return model
        fresh = recipe.refinement_latents
        data = self.latents() if fresh is None else self._rendered(fresh, "latents-refine")
        stage = DenoiserStage(recipe.model, recipe.refinement, data, model=model.to(self.device))
        stage.name = "refine"
        _train(stage.model, stage, self, self._clips(stage))
        return detach_aligner(stage.model)

    def _clips(self, stage: DenoiserStage) -> list[Watcher]:
        """Watchers that write sample clips of the denoiser while it learns."""
        if self.samples is None:
            return []
        text, sampler = self.text(), self.recipe.sampler
        return [Samples(
            folder=self.folder, every=self.samples, config=self.recipe.model, codec=self.decoder(),
            text=embedded(text), sampler=sampler, dtype=stage.meter.dtype,
            negative=embedded(text, [sampler.negative_prompt])[0] if sampler.guided else None,
            device=self.device,
        )]  # fmt: skip


def _train(
    model: nn.Module,
    stage: Stage,
    run: TrainingRun,
    watchers: Sequence[Watcher] = (),
) -> None:
    seen_by = [*run.watchers, *watchers]
    average = train(
        stage, run.folder, report=run.report, stop_after=run.stop_after, watchers=seen_by, stop=run.stop,
        parallel=Parallel(device=run.device),
    )  # fmt: skip
    if average is None:
        raise Stopped(stage.name)
    model.load_state_dict({**model.state_dict(), **average})
    model.to(CPU).eval()
