"""A tiny decoder learns from a large one: it comes nearer, resumes exactly, and is read back as TAEHV is."""

import pytest
import torch
from kit.references.taehv import random_taehv
from kit.references.wan_folder import small_vae
from kit.tiny.models import draw

from plugins.errors import UserError
from vmla.train.cli.codec_options import RESULT, distil
from vmla.train.loop.loop import train
from vmla.train.optim.optimizers import TrainingSchedule
from vmla.train.stages.tiny_decoder import TinyDecoderStage, TinyTraining, config_like
from vmla.vae.taehv import TAEHV_CONFIGS, Taehv
from vmla.vae.tiny import TinyCodec, TinyCodecConfig
from vmla.vae.wan import WanCodec

pytestmark = pytest.mark.cpu

CPU = torch.device("cpu")
STEPS = 40


@pytest.fixture(scope="module")
def teacher():
    """A codec of the same kind with other weights; docs/checkpoints.md is tested with Wan's own class."""
    return random_taehv(seed=1)


@pytest.fixture(scope="module")
def latents():
    """Of eight clips, smooth in space as those of videos are."""
    coarse = draw(8, 4, 3, 2, 2).flatten(0, 1)
    smooth = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")
    return smooth.unflatten(0, (8, 4))


def stage_of(teacher, latents, steps=STEPS):
    schedule = TrainingSchedule(steps=steps, learning_rate=3e-3, warmup=5, decay=steps // 4, average=0.9)
    training = TinyTraining(schedule=schedule, clips=2, frames=2, cells=3, precision="float32")
    return TinyDecoderStage(teacher, latents, training, {"data": "test"}, CPU)


@pytest.fixture(scope="module")
def learned(teacher, latents, tmp_path_factory):
    return train(stage_of(teacher, latents), tmp_path_factory.mktemp("whole"), report=lambda line: None)


def error_of(tensors, teacher, latents):
    tiny = Taehv(config_like(teacher))
    tiny.load_state_dict(tensors)
    with torch.no_grad():
        shown, wanted = tiny.decode(latents[:2])[0], teacher.decode(latents[:2])[0]
    return float((shown - wanted).abs().mean())


def test_it_comes_nearer_to_what_the_large_decoder_shows(teacher, latents, learned):
    untrained = stage_of(teacher, latents).tiny.state_dict()
    assert error_of(learned, teacher, latents) < 0.5 * error_of(untrained, teacher, latents)


def test_it_resumes_to_the_same_weights(teacher, latents, tmp_path):
    def run(folder, steps=4, stop=None):
        stage = stage_of(teacher, latents, steps=steps)
        return train(stage, tmp_path / folder, report=lambda line: None, stop_after=stop)

    whole = run("whole")
    assert run("parts", stop=2) is None
    again = run("parts")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in again.items())
    with pytest.raises(UserError):
        run("parts", steps=5)


def test_a_batch_is_its_seed_and_step(teacher, latents):
    one, other = (stage_of(teacher, latents).draw(7) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert one[0].shape == (2, 4, 2, 3, 3)
    assert one[2].shape == (2, 5, 3, 24, 24)


def test_a_codec_of_another_kind_is_refused_by_what_it_is():
    sizes = {"widths": (8, 8, 8), "decoder_blocks": (1, 1, 1)}
    with pytest.raises(UserError, match="first latent frame is 4 frames"):
        config_like(TinyCodec(TinyCodecConfig(latent_channels=4, **sizes)))
    with pytest.raises(UserError, match="latents of 8 channels and cells of 8 pixels"):
        config_like(TinyCodec(TinyCodecConfig(latent_channels=8, **sizes)))
    assert config_like(WanCodec(small_vae(16))) == TAEHV_CONFIGS["taew2_1"]
    assert RESULT.endswith(".safetensors")


def test_clips_that_are_missing_are_named(checkpoint, tmp_path):
    with pytest.raises(UserError, match="nothing holds no clips"):
        distil(str(checkpoint), tmp_path / "nothing", tmp_path / "out", print, steps=1, clips=1, device="cpu")
    assert not (tmp_path / "out").exists()
