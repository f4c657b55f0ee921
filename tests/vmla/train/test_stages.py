"""What each stage of training learns from, and a whole run of the debug recipe."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from kit.measure import assert_close
from kit.tiny.models import draw, tiny_model
from kit.tiny.passes import window_at

from plugins.errors import UserError
from vmla.cache import CacheSpec
from vmla.config import named_config
from vmla.train import run
from vmla.train.cli.commands import main
from vmla.train.data.latents import LatentSet
from vmla.train.recipes.from_scratch import PRETRAINING_RECIPES
from vmla.train.run import TrainingRun
from vmla.train.stages import STAGES
from vmla.train.stages.codec import draw_clips, with_statistics
from vmla.train.stages.decoder import colour_error
from vmla.train.stages.denoiser import DenoiserStage, initialised, narrowed
from vmla.train.stages.text_encoder import ATTRIBUTES, OBJECTS, draw_captions, truth
from vmla.transformer import VideoMLA
from vmla.vae.tiny import TinyCodec
from vmla.weights.checkpoint import open_checkpoint
from vmla.world.caption import read
from vmla.world.scene import BACKGROUNDS, is_held_out

pytestmark = pytest.mark.cpu

DEBUG = PRETRAINING_RECIPES["debug"]
FRAMES = 24
NOTED = [
    ([0, 1, 2, 3], [200.0, 400.0]), ([0, 1, 2, 3], [300.0, 500.0]), ([0, 2, 3, 4], [200.0, 500.0]),
    ([0], [500.0, 115.0, 518.0]),
]  # fmt: skip
"""Chunk numbers and clips' first frames of four steps, as drawn before prompts could be dropped."""


def numbered_stage(**changes):
    """A denoiser stage over latents that say their clip and their frame."""
    clips, model = 6, DEBUG.model
    shape = (clips, model.in_channels, FRAMES, model.sample_height, model.sample_width)
    of_clip = 100 * torch.arange(clips)[:, None, None, None, None]
    frames = torch.arange(FRAMES)[None, None, :, None, None] + of_clip
    text = 100.0 * torch.arange(clips)[:, None, None].expand(-1, model.text_tokens, model.text_dim)
    training = dataclasses.replace(DEBUG.denoiser_training, chunks=4, **changes)
    return DenoiserStage(model, training, LatentSet(frames.expand(shape).half(), text.half(), {}))


# The denoiser


def test_a_batch_holds_the_chunks_that_its_numbers_say():
    stage, starts = numbered_stage(jumps=0.5), []
    for step in range(60):
        latents, text, numbers, _ = stage.draw(step)
        assert numbers[0] == 0
        assert numbers[1:] == list(range(numbers[1], numbers[1] + 3))
        starts.append(numbers[1])
        frames = [number * 3 + offset for number in numbers for offset in range(3)]
        clips = latents[:, 0, 0, 0, 0]
        shown = latents[:, 1, :, 2, 3] - clips[:, None]
        assert shown.tolist() == [frames, frames]
        assert torch.equal(text[:, 0, 0], clips)
        assert len(set(clips.tolist())) == 2
    assert set(starts) == {1, 2, 3, 4, 5}
    assert 15 < starts.count(1) < 45


def test_a_batch_depends_on_seed_and_step_alone():
    one, other = numbered_stage(), numbered_stage()
    other.draw(3)
    for ours, theirs in zip(one.draw(7)[:2], other.draw(7)[:2], strict=True):
        assert torch.equal(ours, theirs)
    assert one.draw(7)[2] == other.draw(7)[2]
    assert any(not torch.equal(one.draw(7)[0], one.draw(step)[0]) for step in (8, 9))
    assert any(not torch.equal(one.draw(s)[0], numbered_stage(seed=1).draw(s)[0]) for s in (7, 8))


def test_without_jumps_and_in_short_clips_chunks_follow_each_other():
    assert all(numbered_stage(jumps=0.0).draw(step)[2] == [0, 1, 2, 3] for step in range(20))
    short = numbered_stage(jumps=1.0)
    short.data = dataclasses.replace(short.data, latents=short.data.latents[:, :, :12])
    assert all(short.draw(step)[2] == [0, 1, 2, 3] for step in range(20))


def test_openings_are_any_chunk_of_any_clip_as_if_a_video_began_there():
    stage, first_frames, kinds = numbered_stage(opening_steps=4, openings=0.5, opening_clips=9), set(), []
    for step in range(40):
        latents, text, numbers, _ = stage.draw(step)
        kinds.append(numbers == [0])
        if kinds[-1]:
            assert latents.shape[:3] == (9, DEBUG.model.in_channels, 3)
            shown = latents[:, 1, :, 2, 3] - text[:, 0, :1]
            assert torch.equal(shown - shown[:, :1], torch.arange(3.0).expand(9, 3))
            first_frames |= set(shown[:, 0].tolist())
    assert all(kinds[:4])
    assert 8 < sum(kinds[4:]) < 28
    assert first_frames == set(range(0, FRAMES, 3))
    assert stage.loss(0).isfinite()


@pytest.mark.parametrize("openings", [0.0, 1.0], ids=["rollouts", "openings"])
def test_a_share_of_the_clips_is_told_nothing_and_nothing_else_changes(openings):
    sizes = {"openings": openings, "opening_clips": 6, "clips": 6}
    told, some, again, none = (
        numbered_stage(prompt_dropout=share, **sizes) for share in (0.0, 0.25, 0.25, 1.0)
    )
    for stage in (told, some, again, none):
        stage.data = dataclasses.replace(stage.data, text=stage.data.text + 1)  # no clip says zero by itself
    dropped = []
    for step in range(60):
        (latents, text, numbers), (same, partly, chunks) = told.draw(step)[:3], some.draw(step)[:3]
        assert torch.equal(same, latents)
        assert chunks == numbers
        assert (text != 0).all()
        zero = (partly == 0).flatten(1).all(1)
        assert torch.equal(partly[~zero], text[~zero])
        assert torch.equal(again.draw(step)[1], partly)
        assert not none.draw(step)[1].any()
        dropped.append(zero)
    assert 0.17 < torch.cat(dropped).float().mean() < 0.33
    assert len({tuple(zero.tolist()) for zero in dropped}) > 10
    assert none.loss(0).isfinite()


@pytest.mark.parametrize("openings", [0.0, 1.0], ids=["rollouts", "openings"])
def test_pairs_are_the_share_of_clips_that_was_asked_for(openings):
    sizes = {"openings": openings, "opening_clips": 2, "clips": 2}
    stages = {share: numbered_stage(pairs=share, **sizes) for share in (None, 0.0, 0.75, 1.0)}
    objects = torch.tensor([1, 2, 1, 1, 2, 1])
    for stage in stages.values():
        stage.data = dataclasses.replace(stage.data, objects=objects)
    shown = {
        share: objects[torch.cat([stage.draw(step)[1][:, 0, 0] / 100 for step in range(80)]).long()]
        for share, stage in stages.items()
    }
    assert (shown[0.0] == 1).all() and (shown[1.0] == 2).all()
    assert (shown[None] == 2).float().mean() < 0.45 < 0.6 < (shown[0.75] == 2).float().mean() < 0.85
    assert numbered_stage(pairs=0.75, **sizes).draw(3)[0].shape == stages[None].draw(3)[0].shape


def test_without_dropout_a_batch_is_what_it_was_before_there_was_any():
    stage = numbered_stage(jumps=0.5, openings=0.5, opening_clips=3)
    batches = [stage.draw(step) for step in range(4)]
    drawn = [(batch[2], batch[0][:, 0, 0, 0, 0].tolist()) for batch in batches]
    assert drawn == NOTED


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_of_prompts_lies_between_none_and_all(share):
    with pytest.raises(UserError, match="it is a share, from 0 to 1"):
        numbered_stage(prompt_dropout=share)


def step_inputs(model, seed=0):
    config, spec = model.config, CacheSpec.of(model.config)
    latents = draw(2, config.in_channels, config.chunk, config.sample_height, config.sample_width, seed=seed)
    text = draw(2, config.text_tokens, config.text_dim, seed=seed + 1)
    cache = draw(*spec.shape(2), seed=seed + 2)
    timestep = torch.full((2, config.chunk), 600.0)
    return latents, text, (timestep, cache, *window_at(spec, 3))


@pytest.mark.parametrize("layout", ["mla", "mha"])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_narrowing_changes_the_type_of_the_computation_alone(layout, dtype, allowed):
    model = tiny_model(layout=layout).requires_grad_(True)
    latents, text, (timestep, cache, *window) = step_inputs(model)
    step, encode_text, _ = narrowed(model, dtype)
    text_kv = encode_text(text)
    velocity, entries = step(latents, timestep, text_kv, cache.to(dtype), *window)
    assert {text_kv.dtype, velocity.dtype, entries.dtype} == {dtype}
    velocity.float().square().mean().backward()
    narrow = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    expected, _ = model(latents, timestep, model.encode_text(text), cache, *window)
    expected.square().mean().backward()
    assert_close(velocity, expected, rtol=0, atol=allowed * float(expected.detach().abs().max()))
    for name, parameter in model.named_parameters():
        assert narrow[name].dtype == parameter.dtype == torch.float32
        near = torch.cosine_similarity(narrow[name].flatten(), parameter.grad.flatten(), dim=0)
        assert near > 1 - 3 * allowed**2 - 1e-5, name


def test_training_starts_from_a_model_that_predicts_nothing():
    torch.manual_seed(0)
    model = initialised(VideoMLA(named_config("debug")))
    latents, text, (timestep, cache, *window) = step_inputs(model)
    velocity, entries = model(latents, timestep, model.encode_text(text), cache, *window)
    assert not velocity.any()
    assert entries.std() > 0.1
    for name, parameter in model.named_parameters():
        zero = name.endswith((".bias", "time_proj.weight", "proj_out.weight"))
        assert bool(parameter.any()) != zero, name


# The text encoder and the codec


def test_captions_are_of_trainings_combinations_and_their_truth_is_what_they_say():
    captions = draw_captions(0, 3, 200)
    assert captions == draw_captions(0, 3, 200)
    assert captions != draw_captions(0, 4, 200)
    for caption in captions:
        reading, classes = read(caption), truth(caption)
        assert classes[-1] == list(BACKGROUNDS).index(reading.background)
        assert len(classes) == len(ATTRIBUTES) * OBJECTS + 1
        for place in range(OBJECTS):
            named = dict(zip(ATTRIBUTES, classes[place * len(ATTRIBUTES) :], strict=False))
            said = reading.requests[place] if place < len(reading.requests) else None
            for attribute, values in ATTRIBUTES.items():
                word = getattr(said, attribute, None)
                assert named[attribute] == (0 if word is None else values.index(word) + 1)
        assert not any(is_held_out(r.shape, r.colour, reading.background) for r in reading.requests)


def test_every_caption_fits_into_the_tokens_of_the_model():
    for name in ("debug", "sprites", "mini"):
        made = PRETRAINING_RECIPES[name]
        tokenizer = made.text.build()[1]
        captions = draw_captions(0, 0, 1000, made.text_training.world)
        assert max(len(tokenizer.numbers(caption)) for caption in captions) <= made.model.text_tokens


def test_clips_are_parts_of_pictures_with_their_objects_marked():
    video, near = draw_clips(0, 5, clips=4, frames=8, crop=32)
    assert video.shape == (4, 8, 3, 32, 32)
    assert near.shape == (4, 8, 1, 32, 32)
    assert set(near.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(draw_clips(0, 5, clips=4, frames=8, crop=32)[0], video)
    assert not torch.equal(draw_clips(0, 6, clips=4, frames=8, crop=32)[0], video)
    for clip, mask in zip(*draw_clips(1, 0, clips=6, frames=4), strict=True):
        plain = clip[:, :, mask[0, 0] == 0][0]
        assert (plain == plain[:, :1]).all()  # whatever is not marked is background
        assert clip[0][:, mask[0, 0] == 1].std() > 0.02


def test_statistics_make_the_latents_standard():
    torch.manual_seed(0)
    codec = TinyCodec(DEBUG.codec).requires_grad_(False)
    config = with_statistics(codec, seed=0, clips=32, frames=8)
    whitened = TinyCodec(config).requires_grad_(False)
    whitened.load_state_dict(codec.state_dict())
    latents = torch.cat([whitened.encode(draw_clips(1, i, clips=16, frames=8)[0]) for i in range(2)])
    assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(4), rtol=0, atol=1e-4)
    assert_close(latents.std((0, 2, 3, 4)), torch.ones(4), rtol=1e-3, atol=0)


# A whole run


@pytest.fixture(scope="module")
def few_clips():
    """Statistics of the codec's latents from 16 clips: those of 256 take longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmla.train.run.with_statistics", partial(with_statistics, clips=16, frames=4))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, few_clips):
    """The debug recipe, trained by its command in three calls, each stopped a little later."""
    folder = tmp_path_factory.mktemp("run")
    arguments = ["run", "debug", "-o", str(folder / "run"), "--threads", str(torch.get_num_threads())]
    results = [CliRunner().invoke(main, [*arguments, "--stop-after", "3"]) for _ in range(2)]
    names = [{path.name for path in (folder / "run").iterdir()}]
    results.append(CliRunner().invoke(main, [*arguments, "--device", "cpu", "-v"]))
    assert [result.stderr.startswith("device: cpu") for result in results] == [False, False, True]
    way_on = f"trained; make a checkpoint of it: vmla-train pack debug {folder / 'run'} -o FOLDER\n"
    assert [result.stdout for result in results] == ["", "", way_on]
    assert [result.exit_code for result in results] == [0, 0, 0], [result.output for result in results]
    return folder / "run", names[0]


def test_nothing_is_built_on_a_stage_that_was_stopped(finished):
    """The first call makes three of the codec's four steps, the second its last and three more."""
    _, names = finished
    assert names == {"codec.pt", "codec.jsonl", "decoder.pt", "decoder.jsonl"}


def test_a_run_has_logged_every_step(finished):
    folder, _ = finished
    for stage, steps in DEBUG.steps().items():
        lines = [json.loads(line) for line in (folder / f"{stage}.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, steps + 1))
        assert all(np.isfinite(line["loss"]) for line in lines)


def test_a_run_goes_on_on_another_device_in_all_of_its_stages(finished, monkeypatch):
    place, seen = torch.device("cpu", 0), {}

    def train(stage, folder, *, parallel, **rest):
        seen[stage.name] = {parallel.device, getattr(stage, "device", parallel.device)}
        return trained(stage, folder, parallel=parallel, **rest)

    def latents(*arguments, device):
        seen["latents"] = {device}
        return made(*arguments, device=device)

    trained, made = run.train, run.make_latents
    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(run, "make_latents", latents)
    TrainingRun(DEBUG, finished[0], lambda line: None, device=place).until("refine")
    assert seen == {name: {place} for name in STAGES}


def test_a_finished_run_is_packed_into_a_checkpoint(finished, tmp_path):
    folder, _ = finished
    result = CliRunner().invoke(main, ["pack", "debug", str(folder), "-o", str(tmp_path / "packed")])
    assert result.exit_code == 0, result.output
    opened, reports = open_checkpoint(tmp_path / "packed"), []
    trained = TrainingRun(DEBUG, folder, reports.append).refine().state_dict()
    for name, tensor in opened.transformer().state_dict().items():
        assert torch.equal(tensor, trained[name].half().float())
    assert reports == []
    assert len(opened.codec().config.latents_mean) == DEBUG.codec.latent_channels
    assert opened.sampler() == DEBUG.sampler
    again = CliRunner().invoke(main, ["pack", "debug", str(folder), "-o", str(tmp_path / "packed")])
    assert again.exit_code == 2
    assert "exists already; remove it or choose another folder" in again.output
    assert len(again.output.splitlines()) == 1


def test_what_is_not_finished_is_not_packed(tmp_path):
    result = CliRunner().invoke(main, ["pack", "debug", str(tmp_path), "-o", str(tmp_path / "packed")])
    assert result.exit_code == 2
    assert "has made 0 of 4 steps; run it to its end first" in result.output
    assert not (tmp_path / "packed").exists()


# The decoder


def test_the_decoder_learns_and_the_encoder_stays(tmp_path):
    training = TrainingRun(DEBUG, tmp_path, lambda line: None)
    before, after = training.codec(), training.decoder()
    assert all(
        torch.equal(a, b)
        for a, b in zip(before.encoder.parameters(), after.encoder.parameters(), strict=True)
    )
    assert not any(
        torch.equal(a, b)
        for a, b in zip(before.decoder.parameters(), after.decoder.parameters(), strict=True)
    )
    assert after.config == before.config


def test_a_small_object_s_colour_weighs_as_much_as_a_large_one_s():
    covered = torch.zeros(1, 1, 3, 8, 8)
    covered[0, 0, 0, :6] = 1.0
    covered[0, 0, 1, 7, 7] = 1.0
    large, small = (covered[:, :, i, None] * torch.tensor([0.2, 0.0, 0.1])[:, None, None] for i in (0, 1))
    assert_close(colour_error(large, covered), colour_error(small, covered), rtol=1e-6, atol=0)
    expected = (0.2 + 0.1 + 10 * (0.2**2 + 0.1**2)) / 6  # of two objects; the third covers nothing
    assert float(colour_error(large, covered)) == pytest.approx(expected)
    assert float(colour_error(torch.zeros(1, 1, 3, 8, 8), covered)) == 0.0
