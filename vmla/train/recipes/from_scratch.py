"""Named training recipes: everything that determines a small model's weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vmla.cli.options.names import unknown_name
from vmla.config import MODEL_CONFIGS, ModelConfig
from vmla.scheduler import Sampler
from vmla.text import SmallTextConfig
from vmla.train.data.latents import LatentSettings
from vmla.train.objectives.teacher_forcing import Forcing
from vmla.train.optim.optimizers import TrainingSchedule
from vmla.train.stages.codec import CodecTraining
from vmla.train.stages.decoder import DecoderTraining
from vmla.train.stages.denoiser_settings import DenoiserTraining
from vmla.train.stages.text_encoder import TextTraining
from vmla.vae.tiny import TinyCodecConfig
from vmla.world.caption import vocabulary
from vmla.world.worlds import SECOND


@dataclass(frozen=True, kw_only=True)
class PretrainingRecipe:
    """The stages of one model, in order: codec, decoder, text, latents, denoiser, refine."""

    name: str
    model: ModelConfig
    codec: TinyCodecConfig
    text: SmallTextConfig
    codec_training: CodecTraining
    decoder_training: DecoderTraining | None = None
    """How the codec's decoder is trained further; None skips that stage."""
    text_training: TextTraining
    latents: LatentSettings
    denoiser_training: DenoiserTraining
    refinement: DenoiserTraining | None = None
    """How the denoiser's average is trained further; None skips that stage."""
    refinement_latents: LatentSettings | None = None
    """The clips of `refinement`; None takes those that the denoiser has seen."""
    sampler: Sampler
    """The finished model's own sampler, which the commands use by default."""

    def steps(self) -> dict[str, int]:
        """Optimizer steps by stage, for the stages that train."""
        steps = {
            "codec": self.codec_training.schedule.steps,
            **({} if self.decoder_training is None else {"decoder": self.decoder_training.schedule.steps}),
            "text": self.text_training.schedule.steps,
            "denoiser": self.denoiser_training.schedule.steps,
        }
        return steps if self.refinement is None else {**steps, "refine": self.refinement.schedule.steps}

    def in_world(self, world: str) -> PretrainingRecipe:
        """This recipe, with `world` as the world of every stage that renders."""
        decoder, fresh = self.decoder_training, self.refinement_latents
        return replace(
            self,
            codec_training=replace(self.codec_training, world=world),
            decoder_training=None if decoder is None else replace(decoder, world=world),
            text_training=replace(self.text_training, world=world),
            latents=replace(self.latents, world=world),
            refinement_latents=None if fresh is None else replace(fresh, world=world),
        )


# First chunks long alone, of one object before two, as image pretraining is; then rollouts over a past that
# is nearly that of a video, for motion cannot be read from a coarse one.
_SPRITES_DENOISER = DenoiserTraining(
    schedule=TrainingSchedule(
        steps=13000, learning_rate=1.5e-3, matrix_rate=5e-3, warmup=50, decay=5500, average=0.998
    ),
    forcing=Forcing(context_noise=0.1, own_sigma=0.5),
    clips=12,
    opening_steps=6400,
    single_steps=1800,
    openings=0.25,
    opening_clips=64,
    prompt_dropout=0.1,
    alignment=5.0,
    compiled=True,
)

# `sprites`, the model that ships. On one or two shared CPU cores the codec takes half an hour, text and
# latents ten minutes, the decoder one hour, the denoiser ten, the refinement's clips one and the refinement
# three and a half.
SPRITES = PretrainingRecipe(
    name="sprites",
    model=MODEL_CONFIGS["sprites"],
    codec=TinyCodecConfig(latent_channels=8),
    text=SmallTextConfig(words=vocabulary()),
    codec_training=CodecTraining(
        schedule=TrainingSchedule(
            steps=3800, learning_rate=1e-3, matrix_rate=2e-3, decay=1600, average=0.995, save_every=100
        ),
        crop_steps=1500,
        noise=0.3,
        decorrelation=0.1,
    ),
    decoder_training=DecoderTraining(
        schedule=TrainingSchedule(steps=3000, learning_rate=1e-3, warmup=20, decay=2000, average=0.995),
    ),
    text_training=TextTraining(
        schedule=TrainingSchedule(steps=1600, learning_rate=2e-3, decay=1000, average=0.98, save_every=200),
    ),
    latents=LatentSettings(clips=2560, label_grid=4),
    denoiser_training=_SPRITES_DENOISER,
    # After a hundred passes the denoiser knows its clips by heart. It goes on with others, most of them of
    # two objects, of which there are far more kinds.
    refinement_latents=LatentSettings(clips=8192, seed=1, label_grid=4),
    refinement=replace(
        _SPRITES_DENOISER,
        schedule=TrainingSchedule(
            steps=4000, learning_rate=1e-3, matrix_rate=3.5e-3, warmup=100, decay=2500, average=0.998
        ),
        opening_steps=0,
        single_steps=0,
        openings=0.5,
        pairs=0.7,
        seed=1,
    ),
    # The first chunk decides what is seen; with fresh noise at each step it can take back a second copy of
    # an object, which an Euler path cannot. Chunks that look at it need no guidance, nor more steps (LOG.md).
    sampler=Sampler(
        kind="renoise",
        steps=4,
        shift=2.0,
        opening=Sampler(kind="renoise", steps=24, shift=2.0, guidance_scale=2.0),
    ),
).in_world(SECOND.name)

# Every stage in seconds, to see that it all runs; it learns nothing.
DEBUG = PretrainingRecipe(
    name="debug",
    model=MODEL_CONFIGS["debug"],
    codec=TinyCodecConfig(latent_channels=4, widths=(8, 8, 8), decoder_blocks=(1, 1, 1)),
    text=SmallTextConfig(width=32, head_width=16, heads=2, ffn_width=32, layers=1),
    codec_training=CodecTraining(
        schedule=TrainingSchedule(steps=4, learning_rate=1e-3, matrix_rate=1e-3, decay=2, save_every=2),
        crop_steps=2,
        crops=2,
        wholes=2,
        precision="float32",
    ),
    decoder_training=DecoderTraining(
        schedule=TrainingSchedule(steps=4, learning_rate=1e-3, decay=2, save_every=2),
        clips=2,
        precision="float32",
    ),
    text_training=TextTraining(
        schedule=TrainingSchedule(steps=4, learning_rate=1e-3, decay=2, save_every=2),
        captions=4,
        precision="float32",
    ),
    latents=LatentSettings(clips=4, frames=12, shard=2),
    refinement_latents=LatentSettings(clips=4, frames=12, shard=2, seed=1),
    denoiser_training=DenoiserTraining(
        schedule=TrainingSchedule(steps=4, learning_rate=1e-3, matrix_rate=1e-3, decay=2, save_every=2),
        forcing=Forcing(),
        clips=2,
        chunks=3,
        precision="float32",
    ),
    refinement=DenoiserTraining(
        schedule=TrainingSchedule(steps=2, learning_rate=1e-3, matrix_rate=1e-3, decay=1, save_every=1),
        forcing=Forcing(context_noise=0.1),
        clips=2,
        chunks=3,
        precision="float32",
    ),
    sampler=Sampler(kind="euler", steps=2, shift=2.0),
)

# A smaller model of the same world, so that studies with seeds are affordable.
MINI_MODEL = replace(
    MODEL_CONFIGS["sprites"], num_attention_heads=2, attention_head_dim=64, num_layers=3, ffn_dim=512,
    text_dim=64, text_tokens=112, in_channels=16, kv_lora_rank=16, qk_rope_head_dim=16,
    q_lora_rank=64, position_table=False,
)  # fmt: skip
MINI = PretrainingRecipe(
    name="mini",
    model=MINI_MODEL,
    codec=TinyCodecConfig(widths=(48, 32, 16), decoder_blocks=(1, 1, 1)),
    text=SmallTextConfig(width=64, head_width=32, heads=2, ffn_width=128, layers=1),
    codec_training=CodecTraining(
        schedule=TrainingSchedule(
            steps=600, learning_rate=1e-3, matrix_rate=2e-3, decay=300, average=0.99, save_every=100
        ),
        crop_steps=400,
    ),
    text_training=TextTraining(
        schedule=TrainingSchedule(steps=600, learning_rate=2e-3, decay=300, average=0.98, save_every=100)
    ),
    latents=LatentSettings(clips=512),
    denoiser_training=DenoiserTraining(
        schedule=TrainingSchedule(
            steps=1200, learning_rate=1.5e-3, matrix_rate=5e-3, decay=500, average=0.99
        ),
        forcing=Forcing(),
        clips=12,
        chunks=4,
        opening_steps=500,
        openings=0.2,
        opening_clips=64,
        compiled=True,
    ),
    sampler=Sampler(kind="euler", steps=8, shift=2.0),
)

PRETRAINING_RECIPES = {recipe.name: recipe for recipe in (DEBUG, MINI, SPRITES)}


def pretraining_recipe(name: str, *, seed: int | None = None, **sizes: Any) -> PretrainingRecipe:
    """The named recipe, with another seed of its denoiser or other sizes (of `ModelConfig`) if given.

    Raises:
        UserError: for a name that does not exist, or sizes that do not fit together.
    """
    if name not in PRETRAINING_RECIPES:
        raise unknown_name("training recipe", name, PRETRAINING_RECIPES)
    recipe = PRETRAINING_RECIPES[name]
    given = {key: value for key, value in sizes.items() if value is not None}
    if seed is not None:
        recipe = replace(recipe, denoiser_training=replace(recipe.denoiser_training, seed=seed))
    return replace(recipe, model=replace(recipe.model, **given))
