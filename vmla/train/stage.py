"""`vmla-train stage`: one stage from a checkpoint to a checkpoint, alone or under `torchrun`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from plugins.atomic_files import atomic_folder
from plugins.errors import UserError
from vmla.cli.stopping import Stop
from vmla.scheduler import Sampler
from vmla.train.data.clips import open_clips
from vmla.train.data.latents import LatentSet
from vmla.train.loop.loop import Stage, Watcher, train
from vmla.train.loop.parallel import Parallel, checkpoint_blocks, direct, shard, whole
from vmla.train.monitoring.samples import Samples, embedded, joining
from vmla.train.objectives.alignment import without_aligner
from vmla.train.optim.precision import resolve
from vmla.train.recipes.from_checkpoint import DistillationRecipe
from vmla.train.stages.denoiser import DenoiserStage, narrowed
from vmla.train.stages.distillation import ConsistencyStage, DistributionStage
from vmla.transformer import VideoMLA
from vmla.weights.checkpoint import WEIGHTS, Checkpoint, open_checkpoint
from vmla.weights.conversion.convert import finish_folder
from vmla.weights.formats.files import write_tensors

RESULT = "checkpoint"
"""The folder of a finished stage that the next one starts from."""


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """One stage to be run."""

    name: str
    """The stage, one of `vmla.train.recipes.from_checkpoint.STAGES`."""
    recipe: DistillationRecipe
    start: str
    """The checkpoint that is trained."""
    data: Path
    output: Path
    teacher: str | None = None
    """Teacher of a distillation; None takes the start itself."""
    critic: str | None = None
    """Checkpoint that the critic starts from; None takes the teacher."""
    samples: int | None = None
    """Steps between two sets of sample clips; None makes none."""

    def run(
        self,
        parallel: Parallel,
        report: Callable[[str], None],
        *,
        stop_after: int | None = None,
        watchers: Sequence[Watcher] = (),
        stop: Stop | None = None,
    ) -> None:
        """Train or resume, and write the averaged weights as a checkpoint when the stage is finished.

        Raises:
            UserError: for data or checkpoints that do not fit, or a folder of another run.
        """
        checkpoint = open_checkpoint(self.start)
        config = checkpoint.model_config()
        video = self.name in ("forcing", "consistency")
        data = self._with_negative(open_clips(self.data, config, video=video)).to(parallel.device)
        stage = self._stage(data, parallel)
        seen_by = [*watchers, *self._clips(checkpoint, stage, parallel)]
        average = train(
            stage, self.output, report=report, stop_after=stop_after, parallel=parallel, watchers=seen_by,
            stop=stop,
        )  # fmt: skip
        if average is None or (self.output / RESULT).exists():
            return
        tensors = without_aligner(whole(average))
        if parallel.rank == 0:
            _write(self.output / RESULT, checkpoint, tensors, self._sampler(checkpoint))
            report(f"wrote {self.output / RESULT}")

    def _with_negative(self, data: LatentSet) -> LatentSet:
        """With the negative prompt of the teacher's sampler, if it is guided and the clips name none."""
        teacher = self._teacher()
        sampler = teacher.sampler()
        if self.name == "forcing" or data.negative is not None or not sampler.guided:
            return data
        return replace(data, negative=embedded(teacher.text(), [sampler.negative_prompt])[0])

    def _teacher(self) -> Checkpoint:
        return open_checkpoint(self.teacher or self.start)

    def _stage(self, data: LatentSet, parallel: Parallel) -> Stage:
        settings = getattr(self.recipe.taught_by(self._teacher().sampler()), self.name)
        dtype = resolve(settings.precision, parallel.device)
        calls = direct if parallel.sharded else narrowed

        def network(folder: str, *, learns: bool) -> VideoMLA:
            model = open_checkpoint(folder).transformer().requires_grad_(learns).to(parallel.device)
            if not parallel.sharded:
                return model
            return shard(checkpoint_blocks(model) if learns else model, dtype)

        student, teacher = network(self.start, learns=True), self.teacher or self.start
        if self.name == "forcing":
            if parallel.sharded and (settings.jumps or settings.openings or settings.opening_steps):
                # Each batch draws them by itself, and processes that share weights must run the same passes.
                raise UserError(f"{self.recipe.name} draws jumps or openings; run it without torchrun")
            stage = DenoiserStage(student.config, settings, data, model=student, calls=calls)
            stage.name = self.name
            return stage
        if self.name == "consistency":
            target, guide = (network(folder, learns=False) for folder in (self.start, teacher))
            return ConsistencyStage(student, target, guide, settings, data, calls=calls)
        critic = network(self.critic or teacher, learns=True)
        judge = network(teacher, learns=False)
        return DistributionStage(
            student, critic, judge, settings, data, calls=calls, group=parallel.group, name=self.name
        )

    def _clips(self, checkpoint: Checkpoint, stage: Stage, parallel: Parallel) -> list[Watcher]:
        """Watchers that write sample clips of the student while it learns."""
        if self.samples is None:
            return []
        if parallel.rank:
            return [joining(self.samples)]
        text, sampler = checkpoint.text(), self._sampler(checkpoint)
        return [Samples(
            folder=self.output, every=self.samples, config=checkpoint.model_config(),
            codec=checkpoint.codec(), text=embedded(text), sampler=sampler,
            dtype=stage.meter.dtype, device=parallel.device,
            negative=embedded(text, [sampler.negative_prompt])[0] if sampler.guided else None,
        )]  # fmt: skip

    def _sampler(self, checkpoint: Checkpoint) -> Sampler:
        """How the result is sampled: as before, or in the student's few steps."""
        return checkpoint.sampler() if self.name == "forcing" else self.recipe.distribution.sampler


def _write(folder: Path, start: Checkpoint, tensors: dict[str, torch.Tensor], sampler: Sampler) -> None:
    """The checkpoint that training started from, with other weights and another schedule."""
    values = (start.folder / "transformer" / "config.json").read_text()
    with atomic_folder(folder) as temporary:
        (temporary / "transformer").mkdir()
        write_tensors(temporary / "transformer" / WEIGHTS, tensors, {"format": "pt"})
        (temporary / "transformer" / "config.json").write_text(values)
        finish_folder(temporary, start.folder, sampler)
