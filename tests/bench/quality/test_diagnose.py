"""Telling codec, first chunk and continuation apart: each part on what is known beforehand."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from kit.tiny.checkpoints import as_trained_on

from bench.cli import main as vmla_bench
from bench.quality.diagnose import figures, held_out_scenes, still_figures, through_codec, trained_scenes
from bench.quality.grades import Graded
from plugins.documents.json_file import read_json
from vmla.train.data.latents import drawn_clip
from vmla.weights.checkpoint import open_checkpoint
from vmla.world.grader.grade import Grade
from vmla.world.worlds import FIRST, SECOND

pytestmark = pytest.mark.cpu


class Exact:
    """A codec that loses nothing: its latents are the frames."""

    temporal_ratio = 4

    def encode(self, video):
        return video

    def decode(self, latents, memory=None):
        return latents.clamp(0, 1), memory


def test_scenes_are_held_out_and_half_have_two_objects():
    scenes = held_out_scenes(10, seed=1, world=SECOND)
    assert scenes == held_out_scenes(10, seed=1, world=SECOND)
    assert all(scene.held_out for scene in scenes)
    assert [len(scene.sprites) for scene in scenes] == [1, 2] * 5


@pytest.mark.parametrize("world", [FIRST, SECOND], ids=lambda world: world.name)
def test_a_codec_that_loses_nothing_passes_and_one_of_noise_fails(world):
    scenes = held_out_scenes(6, seed=0, world=world)
    whole = figures(through_codec(Exact(), scenes, world, noise=0.0))
    assert set(whole) >= {"all", "one object", "two objects"}
    assert whole["one object"]["all"] == 1.0
    drowned = figures(through_codec(Exact(), scenes[:2], world, noise=5.0))
    assert drowned["all"]["all"] == 0.0


def test_a_model_of_no_world_is_refused_and_one_of_a_world_measured(checkpoint, tmp_path):
    refused = CliRunner().invoke(vmla_bench, ["diagnose", str(checkpoint)])
    assert refused.exit_code == 2
    assert "no world whose truth is known" in refused.output.splitlines()[-1]
    folder = as_trained_on("sprites-2", checkpoint, tmp_path / "model")
    path = tmp_path / "found.json"
    asked = ["diagnose", str(folder), "--prompts", "2", "--true", "1", "-o", str(path)]
    result = CliRunner().invoke(vmla_bench, asked)
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    assert found["complete"] and found["world"] == "sprites-2"
    rolled = {f"{true} true chunks, then own" for true in (0, 1)}
    assert set(found["stages"]) == {"true videos through the codec", *rolled}
    assert set(found["first_chunks"]) == {"held-out prompts"}  # the record of this model names no clips
    assert {"count", "all"} < set(found["first_chunks"]["held-out prompts"]["two objects"])
    assert all(0 <= share <= 1 for stage in found["stages"].values() for share in stage["all"].values())


def test_scenes_of_training_are_those_of_its_record():
    shipped = open_checkpoint()
    scenes, settings = trained_scenes(shipped, 6), read_json(shipped.folder / "training.json")["settings"]
    assert [len(scene.sprites) for scene in scenes] == [1, 2] * 3
    assert not any(scene.held_out for scene in scenes)
    drawn = [drawn_clip(settings["latents"]["seed"], number, shipped.world())[0] for number in range(20)]
    assert all(scene in drawn for scene in scenes)


def test_a_first_chunk_is_not_asked_for_its_motion():
    right = Grade(background=True, colour=True, shape=True, motion=False, count=True)
    prompts = ["a red star resting on a navy background"] * 4
    grades = [right, right, replace(right, count=False), replace(right, shape=False, motion=True)]
    graded = [Graded(prompt=p, second=0, grade=g) for p, g in zip(prompts, grades, strict=True)]
    assert still_figures(graded)["one object"] == {
        "background": 1.0, "colour": 1.0, "shape": 0.75, "count": 0.75, "all": 0.5
    }  # fmt: skip


def test_given_chunks_are_those_of_the_result(checkpoint):
    from vmla.cache import CacheSpec
    from vmla.train.objectives.cached_rollout import CachedRollout
    from vmla.train.objectives.self_forcing import self_rollout

    opened = open_checkpoint(checkpoint)
    model, config = opened.transformer(), opened.model_config()
    text_kv = model.encode_text(torch.zeros(1, config.text_tokens, config.text_dim))
    picture = config.in_channels, config.sample_height, config.sample_width

    def rolled(given=None):
        memory = CachedRollout(model, CacheSpec.of(config), text_kv)
        sampler, steps = opened.sampler(), opened.sampler().steps
        return self_rollout(
            memory, sampler, picture, chunks=4, exit_step=steps - 1, seeds=[3], given=given
        )  # fmt: skip

    whole = rolled()
    assert torch.equal(rolled(whole[:, :, : 2 * config.chunk]), whole)
