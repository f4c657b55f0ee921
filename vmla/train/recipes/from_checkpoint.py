"""Named settings of the stages that start from a checkpoint: the paper's three, and a fourth."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vmla.cli.options.names import unknown_name
from vmla.config import MODEL_CONFIGS, ModelConfig
from vmla.scheduler import Sampler
from vmla.train.objectives.consistency import Consistency
from vmla.train.objectives.teacher_forcing import Forcing
from vmla.train.optim.optimizers import DistilSchedule, TrainingSchedule
from vmla.train.recipes.from_scratch import MINI_MODEL
from vmla.train.stages.denoiser_settings import DenoiserTraining
from vmla.train.stages.distillation import ConsistencyTraining, DistributionTraining

STAGES = ("forcing", "consistency", "distribution", "long")


@dataclass(frozen=True, kw_only=True)
class DistillationRecipe:
    """Settings of the stages that start from a checkpoint of one model, in order."""

    name: str
    model: ModelConfig
    """The model's sizes, for plans and tests; a checkpoint has its own."""
    forcing: DenoiserTraining
    consistency: ConsistencyTraining
    distribution: DistributionTraining
    long: DistributionTraining
    """Distribution matching on the newest chunks of videos longer than a clip."""
    guided_as_teacher: bool = True
    """Whether distillations take the guidance of the teacher's own sampler in place of theirs."""

    def taught_by(self, teacher: Sampler) -> DistillationRecipe:
        """The recipe with the guidance of a teacher that `teacher` samples.

        Its weight w means u + w (c - u), which distribution matching writes as c + (w - 1) (c - u). A student
        makes all chunks alike, so the weight is that of the chunk that decides what is seen: the opening.
        """
        if not self.guided_as_teacher:
            return self
        weight = teacher.of_chunk(opens=True).guidance_scale
        return replace(
            self,
            consistency=replace(
                self.consistency, consistency=replace(self.consistency.consistency, guidance=weight)
            ),
            distribution=replace(self.distribution, guidance=weight - 1),
            long=replace(self.long, guidance=weight - 1),
        )


STUDENT = Sampler(kind="renoise", steps=4, shift=5.0)
PLAIN = Forcing(shift=5.0, copies=1, context_noise=0.0, own_share=0.0)
"""Teacher forcing as in the paper: each chunk follows true, clean ones."""


def _matching(*, steps: int, rate: float, critic: float, save: int, **others: object) -> DistributionTraining:
    """Distribution matching with a critic that learns at a rate of its own."""
    schedule = DistilSchedule(steps=steps, learning_rate=rate, save_every=save)
    return DistributionTraining(
        schedule=schedule,
        critic=replace(schedule, learning_rate=critic),
        sampler=STUDENT,
        **others,  # type: ignore[arg-type]
    )


# Rates, steps, guidance and critic updates: arXiv 2605.30351, table 4, and Causal Forcing's configurations.
# Clips are for each GPU: 8 GPUs and --accumulate 4 give the paper's 128 in distribution matching, and by
# the plan of `vmla.train.recipes.memory_budget` fit into 80 GB, which 8 clips would not.
_WAN_MATCHING = _matching(steps=1000, rate=2e-6, critic=4e-7, save=50, whole_scores=True, clips=4)
WAN = DistillationRecipe(
    name="wan-1.3b",
    model=MODEL_CONFIGS["wan-1.3b"],
    forcing=DenoiserTraining(
        schedule=DistilSchedule(steps=9500, learning_rate=5e-6, save_every=250),
        forcing=PLAIN, clips=1, jumps=0.0, at_once=True,
    ),
    consistency=ConsistencyTraining(
        schedule=DistilSchedule(steps=2500, learning_rate=2e-6, save_every=250), consistency=Consistency(),
        at_once=True,
    ),
    distribution=_WAN_MATCHING,
    # A teacher that sees whole clips knows no frames before them: the teacher here is stage one's.
    long=replace(_WAN_MATCHING, whole_scores=False, prelude=33, clips=1, at_once=True),
    guided_as_teacher=False,  # table 4 has weights of its own, whatever Wan is sampled with
)  # fmt: skip

# Guidance is the teacher's own in all that follow: `taught_by`.
_SMALL = Consistency(grid=24, shift=2.0, guidance=1.0)
_SMALL_STUDENT = replace(STUDENT, shift=2.0)
_SPRITES_MATCHING = replace(
    _matching(
        steps=60, rate=2e-5, critic=4e-5, save=20, guidance=0.0, score_shift=2.0, clips=8, compiled=True
    ),
    sampler=_SMALL_STUDENT,
)
SPRITES = DistillationRecipe(
    name="sprites",
    model=MODEL_CONFIGS["sprites"],
    forcing=DenoiserTraining(
        schedule=DistilSchedule(steps=300, learning_rate=1e-4),
        forcing=Forcing(context_noise=0.1, own_sigma=0.5),  # of the model's own last stage
        clips=12,
        openings=0.2,
        opening_clips=64,
        prompt_dropout=0.1,  # or guidance would have nothing to steer away from
        compiled=True,
    ),
    consistency=ConsistencyTraining(
        schedule=DistilSchedule(steps=300, learning_rate=1e-4), consistency=_SMALL, clips=16, compiled=True
    ),
    distribution=_SPRITES_MATCHING,
    long=replace(_SPRITES_MATCHING, prelude=24, clips=8),
)

# The same model with as much as a GPU computes in minutes: more clips for each step, more steps, a clip at
# once. Half of the past in `sprites` is the model's own guess, which must be made first; here it is true,
# under more noise, and what the student makes of its own past is left to distribution matching.
SPRITES_GPU = replace(
    SPRITES,
    name="sprites-gpu",
    forcing=DenoiserTraining(
        schedule=TrainingSchedule(
            steps=1200, learning_rate=1e-3, matrix_rate=3.5e-3, warmup=100, decay=800, save_every=400
        ),
        forcing=Forcing(copies=1, own_share=0.0),
        clips=192, openings=0.1, opening_clips=1024, prompt_dropout=0.1, at_once=True,
    ),
    consistency=replace(
        SPRITES.consistency,
        schedule=DistilSchedule(steps=600, learning_rate=1e-4, save_every=300),
        clips=128, compiled=False, at_once=True,
    ),
    distribution=replace(
        _SPRITES_MATCHING,
        schedule=replace(_SPRITES_MATCHING.schedule, steps=120, save_every=60),
        critic=replace(_SPRITES_MATCHING.critic, save_every=60),
        clips=64, compiled=False, at_once=True,
    ),
    long=replace(_SPRITES_MATCHING, prelude=24, clips=32, compiled=False, at_once=True),
)  # fmt: skip

_MINI_MATCHING = replace(
    _SPRITES_MATCHING,
    schedule=replace(_SPRITES_MATCHING.schedule, steps=60),
    chunks=4,
    clips=8,
    compiled=False,
)
MINI = DistillationRecipe(
    name="mini",
    model=MINI_MODEL,
    forcing=DenoiserTraining(
        schedule=DistilSchedule(steps=100, learning_rate=1e-4), forcing=Forcing(), clips=16, chunks=4
    ),
    consistency=ConsistencyTraining(
        schedule=DistilSchedule(steps=200, learning_rate=1e-4), consistency=_SMALL, clips=16, chunks=4
    ),
    distribution=_MINI_MATCHING,
    long=replace(_MINI_MATCHING, prelude=8),
)

# Every stage in seconds, to see that it all runs; it learns nothing.
_TINY = DistilSchedule(steps=4, learning_rate=1e-3, save_every=2)
_DEBUG_MATCHING = _matching(
    steps=3, rate=1e-3, critic=1e-3, save=1, critic_updates=2, guidance=0.0, clips=2, chunks=2,
    precision="float32",
)  # fmt: skip
DEBUG = DistillationRecipe(
    name="debug",
    model=MODEL_CONFIGS["debug"],
    forcing=DenoiserTraining(
        schedule=_TINY, forcing=PLAIN, clips=2, chunks=3, jumps=0.0, precision="float32", at_once=True
    ),
    consistency=ConsistencyTraining(
        schedule=_TINY,
        consistency=Consistency(grid=6, guidance=1.0),
        clips=2,
        chunks=3,
        precision="float32",
        at_once=True,
    ),
    distribution=_DEBUG_MATCHING,
    long=replace(_DEBUG_MATCHING, prelude=2, at_once=True),
)

DISTILLATION_RECIPES = {recipe.name: recipe for recipe in (DEBUG, MINI, SPRITES, SPRITES_GPU, WAN)}


def distillation_recipe(name: str) -> DistillationRecipe:
    """The distillation recipe called `name`.

    Raises:
        UserError: for a name that does not exist.
    """
    if name not in DISTILLATION_RECIPES:
        raise unknown_name("training recipe", name, DISTILLATION_RECIPES)
    return DISTILLATION_RECIPES[name]
