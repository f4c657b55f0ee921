"""Stages of distillation resume exactly, train what they should, and lead to few-step checkpoints."""

import dataclasses
import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from kit.measure import assert_close
from kit.refusals import assert_one_line, said
from kit.tiny.models import draw, randomise, tiny_config, tiny_model

from plugins.errors import UserError
from vmla.cache import CacheSpec
from vmla.scheduler import Sampler, guided
from vmla.train.cli.commands import main
from vmla.train.data.latents import LatentSet
from vmla.train.loop.loop import train
from vmla.train.loop.parallel import direct
from vmla.train.objectives.cached_rollout import CachedRollout
from vmla.train.objectives.dmd import guided_beyond
from vmla.train.recipes.from_checkpoint import DISTILLATION_RECIPES
from vmla.train.recipes.from_scratch import pretraining_recipe
from vmla.train.stages.denoiser import narrowed
from vmla.train.stages.distillation import ConsistencyStage, DistributionStage
from vmla.transformer import VideoMLA
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

DEBUG = DISTILLATION_RECIPES["debug"]


def debug_data(negative=False):
    model = DEBUG.model
    latents = draw(4, model.in_channels, 12, model.sample_height, model.sample_width).half()
    text = draw(4, model.text_tokens, model.text_dim, seed=1).half()
    return LatentSet(latents, text, {"made": "here"}, text[0] if negative else None)


def debug_model(seed=0):
    return randomise(VideoMLA(DEBUG.model), seed).requires_grad_(True)


def consistency_stage():
    return ConsistencyStage(
        debug_model(), debug_model().requires_grad_(False), debug_model(1), DEBUG.consistency, debug_data()
    )


def distribution_stage(training=DEBUG.distribution, data=None, **how):
    networks = debug_model(), debug_model(1), debug_model(2)
    return DistributionStage(*networks, training, data or debug_data(), **how)


STAGES = {
    "consistency": consistency_stage,
    "distribution": distribution_stage,
    "long": lambda: distribution_stage(DEBUG.long, name="long"),
}


def silent(message):
    """Nobody reads it."""


@pytest.mark.parametrize("name", STAGES)
def test_stopped_and_resumed_a_stage_gives_the_same(name, tmp_path):
    whole = train(STAGES[name](), tmp_path / "whole", report=silent)
    assert train(STAGES[name](), tmp_path / "parts", report=silent, stop_after=2) is None
    parts = train(STAGES[name](), tmp_path / "parts", report=silent)
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[key], tensor) for key, tensor in whole.items())
    logs = [(tmp_path / folder / f"{name}.jsonl").read_text().splitlines() for folder in ("whole", "parts")]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == losses[1]
    if name != "consistency":
        states = [torch.load(tmp_path / folder / f"{name}.pt") for folder in ("whole", "parts")]
        companions = [state["companion"] for state in states]
        assert all(torch.equal(companions[0][key], tensor) for key, tensor in companions[1].items())


def test_the_target_is_the_students_average(tmp_path):
    stage = consistency_stage()
    average = train(stage, tmp_path, report=silent)
    for name, parameter in stage.target.named_parameters():
        assert average[name].data_ptr() == parameter.data_ptr()
        assert not torch.equal(parameter, stage.model.get_parameter(name))


def test_the_critic_learns_more_often_and_the_teacher_never(tmp_path):
    stage = distribution_stage()
    teacher = {name: tensor.clone() for name, tensor in stage.teacher.state_dict().items()}
    critic = {name: tensor.clone() for name, tensor in stage.companion.state_dict().items()}
    calls = {"critic": 0, "generator": 0}
    inner = stage.critic_loss, stage.loss

    def counted(key, loss):
        def count(number):
            calls[key] += 1
            return loss(number)

        return count

    stage.critic_loss, stage.loss = counted("critic", inner[0]), counted("generator", inner[1])
    train(stage, tmp_path, report=silent)
    assert calls == {"critic": 6, "generator": 3}
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in stage.teacher.state_dict().items())
    changed = [not torch.equal(t, critic[name]) for name, t in stage.companion.state_dict().items()]
    assert all(changed)


@pytest.mark.parametrize("name", ["wan-1.3b", "sprites", "sprites-gpu", "mini", "debug"])
@pytest.mark.parametrize("stage", ["distribution", "long"])
def test_the_critic_learns_at_its_rate_until_its_last_update(name, stage):
    """It makes more steps than the generator, whose length its schedule once had: it went uphill after."""
    training = getattr(DISTILLATION_RECIPES[name], stage)
    small = {"clips": 2, "chunks": 2, "whole_scores": False, "guidance": 0.0, "compiled": False}
    optimizers = distribution_stage(dataclasses.replace(training, **small)).companion_optimizers
    last = training.schedule.steps * training.critic_updates - 1
    assert {optimizers.factor(number) for number in (0, last // 2, last)} == {1.0}
    with pytest.raises(ValueError, match=f"step {last + 1} of"):
        optimizers.factor(last + 1)


def test_the_generators_loss_moves_the_generator_alone():
    stage = distribution_stage()
    stage.loss(0).backward()
    assert any(p.grad is not None and p.grad.any() for p in stage.model.parameters())
    assert all(p.grad is None for p in stage.companion.parameters())
    stage.model.zero_grad(set_to_none=True)
    stage.critic_loss(0).backward()
    assert all(p.grad is None for p in stage.model.parameters())
    assert all(p.grad is not None for p in stage.companion.parameters())


def test_all_micro_batches_of_a_step_take_the_same_exit_and_length():
    stage, seen = distribution_stage(DEBUG.long, group=3), []
    for draw_number in range(12):
        _, text = stage.batches.text(draw_number, 5)
        with torch.no_grad():
            x, numbers = stage._make(text, draw_number, 5)
        seen.append(tuple(numbers))
        assert x.shape[2] == len(numbers) * DEBUG.model.chunk
    assert all(len(set(seen[i : i + 3])) == 1 for i in range(0, 12, 3))
    assert len(set(seen)) > 1


def test_guidance_needs_a_negative_prompt():
    training = dataclasses.replace(DEBUG.distribution, guidance=3.0)
    with pytest.raises(UserError, match="guidance needs a negative prompt"):
        distribution_stage(training)
    loss = distribution_stage(training, debug_data(negative=True)).loss(0)
    assert not torch.equal(loss, distribution_stage().loss(0))


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_distillations_are_guided_as_the_teacher_is_sampled(weight):
    """Both stages move towards the velocity that the sampler itself would follow."""
    teacher = Sampler(guidance_scale=weight)
    c, u = draw(3, seed=1), draw(3, seed=2)
    for name in ("mini", "sprites", "sprites-gpu", "debug"):
        recipe = DISTILLATION_RECIPES[name].taught_by(teacher)
        assert recipe.consistency.consistency.guidance == weight
        for training in (recipe.distribution, recipe.long):
            assert_close(guided_beyond(c, u, training.guidance), guided(c, u, weight), rtol=0, atol=1e-6)
    assert DISTILLATION_RECIPES["wan-1.3b"].taught_by(teacher) == DISTILLATION_RECIPES["wan-1.3b"]


def test_the_recipe_for_a_gpu_trains_the_model_as_it_was_made():
    """Guidance steers away from what it says where prompts were dropped: training on must drop as many."""
    made, on_gpu = pretraining_recipe("sprites"), DISTILLATION_RECIPES["sprites-gpu"]
    assert on_gpu.model == made.model
    assert on_gpu.forcing.prompt_dropout == made.denoiser_training.prompt_dropout > 0
    assert on_gpu.forcing.forcing.shift == made.denoiser_training.forcing.shift
    guided_by = on_gpu.taught_by(made.sampler)
    assert guided_by.consistency.consistency.guidance == made.sampler.of_chunk(opens=True).guidance_scale


def test_a_per_head_teacher_judges_whole_clips():
    """As Wan does: one pass over all frames, in both directions."""
    wan = randomise(VideoMLA(dataclasses.replace(DEBUG.model, layout="mha")), 1)
    training = dataclasses.replace(DEBUG.distribution, whole_scores=True)
    stage = DistributionStage(debug_model(), wan.requires_grad_(True), wan, training, debug_data())
    memory = stage._score(wan, stage.batches.text(0, 5)[1])([0, 1])
    assert (memory.cache_spec.chunk, memory.cache_spec.slots, memory.cache.shape[2]) == (6, 0, 0)
    assert stage.loss(0).isfinite()
    stage.critic_loss(0).backward()
    assert all(parameter.grad is not None for parameter in wan.parameters())


def test_direct_and_narrowed_passes_agree_in_float32():
    text, inputs = draw(2, 5, 10, seed=3), draw(2, 3, 2, 4, 6, seed=1)
    velocities = []
    for calls in (direct, narrowed):
        step, encode_text, _ = calls(tiny_model(), torch.float32)
        memory = CachedRollout(step, CacheSpec.of(tiny_config()), encode_text(text))
        velocities.append(memory.velocity(inputs, torch.tensor([0.2, 0.7]), 0))
    assert torch.equal(*velocities)


# The command


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clips as a run leaves them, for the debug model."""
    folder, model = tmp_path_factory.mktemp("latents"), DEBUG.model
    clips = debug_data()
    torch.save({"latents": clips.latents, "text": clips.text, "settings": {}}, folder / "latents-000000.pt")
    assert clips.latents.shape[1] == model.in_channels
    return folder


def command(*arguments):
    return CliRunner().invoke(main, ["stage", *map(str, arguments)])


def test_the_stages_lead_from_a_checkpoint_to_a_few_step_one(checkpoint, data, tmp_path):
    start, teacher = checkpoint, checkpoint
    for name in ("forcing", "consistency", "distribution", "long"):
        arguments = (name, "--recipe", "debug", "--from", start, "--data", data, "-o", tmp_path / name)
        result = command(*arguments, "--teacher", teacher)
        assert result.exit_code == 0, result.output
        start = tmp_path / name / "checkpoint"
        teacher = start if name == "forcing" else teacher
        opened = open_checkpoint(start)
        assert opened.sampler().steps == (2 if name == "forcing" else 4)
        assert opened.transformer().config == DEBUG.model
        assert command(*arguments, "--teacher", teacher).exit_code == 0
    from runtime import generate

    assert len(list(generate("a red star", seconds=1, checkpoint=start))) == 16


def test_finished_stages_are_packed_with_the_record_of_all(checkpoint, data, tmp_path):
    begun = shutil.copytree(checkpoint, tmp_path / "begun")
    (begun / "training.json").write_text('{"recipe": "debug", "stages": {"codec": {"seconds": 1800}}}')
    first, second = tmp_path / "first", tmp_path / "second"
    for name, start, folder in (("forcing", begun, first), ("consistency", first / "checkpoint", second)):
        done = command(name, "--recipe", "debug", "--from", start, "--data", data, "-o", folder)
        assert done.exit_code == 0, done.output

    def pack(*folders, to="packed"):
        words = ["pack-stages", *folders, "--start", begun, "-o", tmp_path / to]
        return CliRunner().invoke(main, [str(word) for word in words])

    assert pack(first, second).exit_code == 0
    packed, made = open_checkpoint(tmp_path / "packed"), open_checkpoint(second / "checkpoint")
    for name, tensor in packed.transformer().state_dict().items():
        assert torch.equal(tensor, made.transformer().state_dict()[name].half().float()), name
    assert packed.sampler() == made.sampler()
    record = json.loads((packed.folder / "training.json").read_text())
    assert record["stages"].keys() == {"codec", "forcing", "consistency"}
    assert record["hours"] >= 0.5
    assert record["stages"]["consistency"]["training"]["consistency"]["grid"] == 6
    assert record["stages"]["forcing"].keys() >= {"training", "data", "steps", "loss"}
    assert_one_line(pack(first, second), "exists already")
    assert_one_line(pack(first, tmp_path, to="none"), "holds no finished stage")
    (begun / "training.json").unlink()
    assert_one_line(pack(first, to="none"), "training.json")


def test_a_guided_teacher_guides_both_distillations_by_its_own_weight(checkpoint, data, tmp_path):
    guide = shutil.copytree(checkpoint, tmp_path / "guide")
    scheduler = guide / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "guidance_scale": 2.0}))
    losses = {}
    for name in ("consistency", "distribution"):
        for teacher in (checkpoint, guide):
            folder = tmp_path / f"{name}-{teacher.name}"
            options = ["--from", checkpoint, "--teacher", teacher, "--data", data, "-o", folder]
            result = command(name, "--recipe", "debug", *options)
            assert result.exit_code == 0, result.output
            training = torch.load(folder / f"{name}.pt")["settings"]["training"]
            weight = (
                training["consistency"]["guidance"] if name == "consistency" else training["guidance"] + 1
            )
            assert weight == (2.0 if teacher is guide else 1.0)
            log = (folder / f"{name}.jsonl").read_text().splitlines()
            losses[name, teacher] = json.loads(log[0])["loss"]
            assert open_checkpoint(folder / "checkpoint").sampler().guided is False
        assert losses[name, guide] != losses[name, checkpoint]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["forcing", "--recipe", "large"], "no such recipe: large; there are debug"),
        (["forcing", "--recipe", "debug"], "--from is missing"),
        (["forcing", "--recipe", "debug", "--from", "nowhere", "--data", "x", "-o", "y"], "no checkpoint"),
        (["long", "--recipe", "debug", "--from", "START", "--data", "EMPTY", "-o", "y"], "holds no clips"),
        (["forcing", "--recipe", "debug", "--from", "sprites", "--data", "DATA", "-o", "y"], "model reads"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(checkpoint, data, tmp_path, arguments, complaint):
    places = {"START": checkpoint, "EMPTY": tmp_path, "DATA": data, "y": tmp_path / "y"}
    result = command(*(places.get(word, word) for word in arguments))
    assert result.exit_code == 2
    assert complaint in result.output
    assert len(said(result)) == 1


def test_another_recipe_does_not_go_on(checkpoint, data, tmp_path):
    arguments = ["--from", checkpoint, "--data", data, "-o", tmp_path]
    assert command("forcing", "--recipe", "debug", *arguments, "--stop-after", 2).exit_code == 0
    result = command("forcing", "--recipe", "mini", *arguments)
    assert result.exit_code == 2
    assert "forcing.pt was made with" in result.output


@pytest.mark.parametrize("left", [0, 300, -1])
def test_a_truncated_shard_of_a_run_is_refused_in_one_line(checkpoint, data, tmp_path, left):
    shard = tmp_path / "latents-000000.pt"
    shard.write_bytes((data / shard.name).read_bytes()[:left])
    arguments = ["--recipe", "debug", "--from", checkpoint, "--data", tmp_path, "-o", tmp_path / "out"]
    result = command("forcing", *arguments)
    assert result.exit_code == 2
    assert f"{shard} is damaged" in result.output
    assert len(said(result)) == 1
