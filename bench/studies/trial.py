"""One arm of a study with one seed: trained, distilled if it is asked for, graded; each part once.

All arms share codec, text encoder and clips, which are trained and made once. A trial keeps
what it has finished, so a stopped study continues where it was, and several processes may share one study:
each trial is made by the first process that comes to it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.quality.grades import grade_windows, held_out_prompts, shares
from bench.quality.rollouts import VideoBatch, open_denoiser, seen_rollouts
from plugins.atomic_files import atomic_folder
from plugins.documents.json_file import read_json
from plugins.documents.regular_file import open_own
from vmla.cli.progress import ProgressLine
from vmla.text import TextEncoder
from vmla.train.cli.convert_options import calibration_of
from vmla.train.data.latents import LatentSet
from vmla.train.loop.log import last_record, mean_speed, records
from vmla.train.loop.loop import train
from vmla.train.loop.parallel import ALONE
from vmla.train.loop.state import refuse_other_settings
from vmla.train.recipes.from_checkpoint import DistillationRecipe, distillation_recipe
from vmla.train.recipes.from_scratch import PretrainingRecipe, pretraining_recipe
from vmla.train.run import TrainingRun
from vmla.train.stage import RESULT, StageRun
from vmla.train.stages.denoiser import DenoiserStage
from vmla.transformer import VideoMLA
from vmla.vae.tiny import TinyCodec
from vmla.weights.checkpoint import open_checkpoint, save_checkpoint
from vmla.weights.conversion.convert import Conversion
from vmla.weights.conversion.spectral import Choices, Init
from vmla.weights.formats.files import write_json
from vmla.weights.source import open_source
from vmla.world.worlds import world_named

PARTS = 4
"""Parts of a training, after each of which a closely watched arm is graded."""
CALIBRATION_CLIPS = 8
POINTS = 20
"""Points of a curve of losses."""


@dataclass(frozen=True)
class SharedParts:
    """The parts of a study that no arm varies: codec, text encoder and clips."""

    recipe: PretrainingRecipe
    folder: Path
    codec: TinyCodec
    text: TextEncoder
    data: LatentSet

    @classmethod
    def made(cls, recipe: PretrainingRecipe, folder: Path, report: Callable[[str], None]) -> SharedParts:
        """Train and render what is not in `folder` yet."""
        run = TrainingRun(recipe, folder, report)
        data = run.latents()
        return cls(recipe, folder, run.codec(), run.text(), data)

    def save(self, model: VideoMLA, folder: Path) -> None:
        """A whole checkpoint of `model`, unless there is one."""
        if folder.exists():
            return
        parts: dict[str, Any] = {"codec": self.codec, "text": self.text, "sampler": self.recipe.sampler}
        with atomic_folder(folder) as temporary:
            save_checkpoint(temporary, transformer=model, trained_on=self.recipe.latents.world, **parts)


@dataclass(frozen=True, kw_only=True)
class StudyArm:
    """One setting of what the study varies."""

    name: str
    questions: tuple[str, ...]
    """Comparisons that it belongs to."""
    sizes: dict[str, Any] = field(default_factory=dict)
    """Sizes of the model that differ from the recipe's."""
    init: Init | None = None
    """How it starts from the per-head model; None trains from nothing."""
    distilled: bool = False
    closely: bool = False
    """Whether it is graded along training, too."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Within the context one process works on `folder`; others wait, and then find what it has made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_own(folder.with_name(folder.name + ".lock")), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


MHA = StudyArm(name="mha", questions=("layouts",), sizes={"layout": "mha"}, distilled=True, closely=True)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One arm with one seed in a folder of its own."""

    arm: StudyArm
    seed: int
    shared: SharedParts
    arms: Path
    """The folder of all arms."""
    prompts: int
    seconds: tuple[int, ...]
    line: ProgressLine

    @property
    def folder(self) -> Path:
        """The folder that this trial works in."""
        return self.arms / f"{self.arm.name}-{self.seed}"

    def result(self) -> dict[str, Any]:
        """The result, read if it exists, else made.

        Raises:
            UserError: if the folder holds a trial with other settings.
        """
        with claimed(self.folder):
            return self._result()

    def _result(self) -> dict[str, Any]:
        path = self.folder / "result.json"
        if path.exists():
            found: dict[str, Any] = read_json(path)
            refuse_other_settings(found["settings"], self._settings(), path)
            return found
        finished = {"denoiser": self.denoiser()}
        if self.arm.distilled:
            finished |= self._distilled(finished["denoiser"])
        # Only arms that go through all stages are graded up to the last mark, which would take half of a
        # study's time.
        marks = self.seconds if self.arm.distilled else self.seconds[: max(len(self.seconds) - 1, 1)]
        grades = {name: self._grades(at, marks) for name, at in finished.items()}
        made = self._described() | {"grades": grades}
        write_json(path, made)
        return made

    def denoiser(self) -> Path:
        """The checkpoint after teacher forcing."""
        with claimed(self.folder / "denoiser"):
            return self._denoiser()

    def _denoiser(self) -> Path:
        folder = self.folder / "denoiser"
        if (folder / RESULT).exists():
            return folder / RESULT
        stage = self._stage()
        if self.arm.closely:
            self._look(folder, stage.model, 0)
        average = train(stage, folder, report=self._say, watchers=[self._along(folder, stage)])
        assert average is not None  # it was not stopped, so there are weights
        stage.model.load_state_dict({**stage.model.state_dict(), **average})
        self.shared.save(stage.model, folder / RESULT)
        return folder / RESULT

    def _stage(self) -> DenoiserStage:
        recipe = pretraining_recipe(self.shared.recipe.name, seed=self.seed, **self.arm.sizes)
        if (init := self.arm.init) is None:
            return DenoiserStage(recipe.model, recipe.denoiser_training, self.shared.data)
        model = open_checkpoint(self._converted(init)).transformer().requires_grad_(True)
        return DenoiserStage(model.config, self._distillation().forcing, self.shared.data, model=model)

    def _converted(self, init: Init) -> Path:
        """The per-head model of the same seed with latent attention, before it trains."""
        folder = self.folder / "converted"
        if folder.exists():
            return folder
        start = replace(self, arm=MHA).denoiser()
        source = open_source(start)
        clips = {"clips": CALIBRATION_CLIPS, "seed": self.seed, "calibration": self.shared.folder / "latents"}
        choices = Choices(init=init, seed=self.seed)
        folder.parent.mkdir(parents=True, exist_ok=True)
        job = Conversion(source, self.shared.recipe.model, choices, calibration_of(source, clips))
        job.write(folder, self._say, pipeline=start)
        return folder

    def _distillation(self) -> DistillationRecipe:
        """The recipe's, its draws by this trial's seed."""
        chosen = distillation_recipe(self.shared.recipe.name)
        stages = ("forcing", "consistency", "distribution")
        return replace(chosen, **{name: replace(getattr(chosen, name), seed=self.seed) for name in stages})

    def _distilled(self, start: Path) -> dict[str, Path]:
        """Both stages of distillation; the checkpoint of each."""
        data, made, teacher = self.shared.folder / "latents", dict[str, Path](), str(start)
        for name in ("consistency", "distribution"):
            job = StageRun(
                name=name, recipe=self._distillation(), start=str(start), teacher=teacher, data=data,
                output=self.folder / name,
            )  # fmt: skip
            job.run(ALONE, self._say)
            made[name] = start = job.output / RESULT
        return made

    def _along(self, folder: Path, stage: DenoiserStage) -> Callable[..., None]:
        """Grades the averaged weights of a closely watched arm after each part of its training."""
        every = max(stage.schedule.steps // PARTS, 1)

        def watch(name: str, line: dict[str, Any], average: dict[str, Tensor]) -> None:
            step = line["step"]
            if self.arm.closely and step % every == 0 and step < stage.schedule.steps:
                model = VideoMLA(stage.model.config)
                model.load_state_dict({**model.state_dict(), **average})
                self._look(folder, model, step)

        return watch

    def _look(self, folder: Path, model: VideoMLA, step: int) -> None:
        """Save the weights at `step`, and grade the first seconds of their videos."""
        kept = folder / f"step-{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        self.shared.save(model, kept)
        self._grades(kept, self.seconds[:1])

    def _grades(self, checkpoint: Path, seconds: tuple[int, ...]) -> dict[str, Any]:
        """Shares of held-out prompts that pass, by second and question; made once and stored beside it."""
        path = checkpoint.with_name(checkpoint.name + "-grades.json")
        if path.exists():
            return dict(read_json(path))
        opened, world = open_checkpoint(checkpoint), world_named(self.shared.recipe.latents.world)
        prompts = held_out_prompts(self.prompts, seed=1000, world=world)
        engine, _ = open_denoiser(opened, None)
        seen = seen_rollouts(engine, opened, VideoBatch(0, prompts, 1000), seconds, line=self.line)
        graded = [one for mark, frames in seen for one in grade_windows(prompts, mark, frames, world)]
        write_json(path, shares(graded))
        return shares(graded)

    def _described(self) -> dict[str, Any]:
        """The trial, its losses and its speed."""
        config = open_checkpoint(self.folder / "denoiser" / RESULT).model_config()
        log = self.folder / "denoiser" / "denoiser.jsonl"
        losses = [(line["step"], line["loss"]) for line in records(log)]
        last = losses[-max(len(losses) // 10, 1) :]
        seen = sorted((self.folder / "denoiser").glob("step-*-grades.json"))
        return {
            "arm": self.arm.name,
            "questions": list(self.arm.questions),
            "seed": self.seed,
            "settings": self._settings(),
            "entry_width": config.entry_width,
            "loss": sum(loss for _, loss in last) / len(last),
            "curve": losses[:: max(len(losses) // POINTS, 1)],
            "along": {str(int(path.name.split("-")[1])): read_json(path) for path in seen},
            "seconds": (last_record(log) or {}).get("seconds"),
            "speed": mean_speed(log),
        }

    def _settings(self) -> dict[str, Any]:
        """The settings that must agree when a trial is resumed."""
        recipe = pretraining_recipe(self.shared.recipe.name, seed=self.seed, **self.arm.sizes)
        training = self._distillation().forcing if self.arm.init else recipe.denoiser_training
        return {
            "model": asdict(recipe.model), "training": asdict(training), "init": self.arm.init,
            "prompts": self.prompts, "seconds": list(self.seconds),
        }  # fmt: skip

    def _say(self, text: str) -> None:
        self.line.show(f"{self.folder.name}, {text}")
