"""What a stage says of its speed: operations against PyTorch's own counter, tokens, waiting, the log."""

import dataclasses
import json
import time
from contextlib import contextmanager, nullcontext

import pytest
import torch
from kit.measure import assert_close
from kit.tiny.models import draw, randomise
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vmla.cache import CacheSpec
from vmla.config import named_config
from vmla.flops import PassCost, text_flops
from vmla.train.data.latents import LatentSet
from vmla.train.loop.log import Speedometer, last_record, mean_speed
from vmla.train.loop.loop import train
from vmla.train.loop.throughput import Meter, Speed, Work, matrix_peak
from vmla.train.objectives.cached_rollout import CachedRollout
from vmla.train.objectives.packed_clip import pack_clip
from vmla.train.recipes.from_checkpoint import DISTILLATION_RECIPES
from vmla.train.recipes.from_scratch import PRETRAINING_RECIPES
from vmla.train.stages.codec import CodecStage
from vmla.train.stages.denoiser import DenoiserStage, narrowed
from vmla.train.stages.distillation import ConsistencyStage, DistributionStage
from vmla.train.stages.text_encoder import TextStage
from vmla.transformer import VideoMLA

pytestmark = pytest.mark.cpu

RECIPE, DISTILLATION = PRETRAINING_RECIPES["debug"], DISTILLATION_RECIPES["debug"]


def data(config):
    latents = draw(4, config.in_channels, 12, config.sample_height, config.sample_width).half()
    return LatentSet(latents, draw(4, config.text_tokens, config.text_dim, seed=1).half(), {})


def network(config, *, seed=0, learns=True):
    return randomise(VideoMLA(config), seed).requires_grad_(learns)


def stage_of(name, layout="mla"):
    """Stages that go chunk by chunk."""
    config = named_config("debug", layout=layout)
    training = dataclasses.replace(getattr(DISTILLATION, name), at_once=False)
    student = network(config)
    if name == "forcing":
        return DenoiserStage(config, training, data(config), model=student)
    still = [network(config, seed=seed, learns=False) for seed in (1, 2)]
    if name == "consistency":
        return ConsistencyStage(student, *still, training, data(config))
    return DistributionStage(
        student, network(config, seed=1), still[1], DISTILLATION.distribution, data(config)
    )


@contextmanager
def counter():
    """PyTorch's own counter of operations, by place alone: its names of modules need gradients everywhere."""
    seen = FlopCounterMode(display=False)
    seen.mod_tracker = nullcontext()
    seen.mod_tracker.parents = {"Global"}
    # It has no formula for the fused attention of a CPU: as plain products, it counts.
    with sdpa_kernel(SDPBackend.MATH), seen:
        yield seen


def counted(stage, loss):
    """Operations that PyTorch sees in `loss` and its backward pass, and those that the stage counts."""
    stage.meter.take(1.0)
    with counter() as seen:
        loss(0).backward()
    return seen.get_total_flops(), stage.meter.take(1.0).flops


@pytest.mark.parametrize("layout", ["mla", "mha"])
@pytest.mark.parametrize("name", ["forcing", "consistency", "distribution"])
def test_operations_are_those_that_run(name, layout):
    """But for empty slots, which a CPU leaves out, and gradients that nothing needs."""
    stage = stage_of(name, layout)
    ran, said = counted(stage, stage.loss)
    assert 0.8 * said < ran <= said
    if name == "distribution":
        ran, said = counted(stage, stage.critic_loss)
        assert 0.8 * said < ran <= said


@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_a_pass_with_a_full_window_is_counted_to_the_last_operation(layout):
    model, meter = network(named_config("debug", layout=layout)), Meter(torch.float32)
    step, encode_text, _ = meter.passes(narrowed)(model, torch.float32)
    frame = draw(2, 4, 3, 8, 8)
    with torch.no_grad(), counter() as seen:
        memory = CachedRollout(step, CacheSpec.of(model.config), encode_text(draw(2, 96, 32)))
        assert meter.take(1.0).flops == seen.get_total_flops()
        for number in range(2):
            memory.commit(frame, number)
        meter.take(1.0)
        with counter() as seen:
            memory.velocity(frame, torch.ones(2), 2)
    assert meter.take(1.0) == Work(flops=seen.get_total_flops(), seconds=1.0)


@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_a_clip_at_once_is_counted_but_for_what_its_mask_hides(layout):
    config, meter = named_config("debug", layout=layout), Meter(torch.float32)
    _, encode_text, forward_packed = meter.passes(narrowed)(network(config), torch.float32)
    clip = pack_clip(CacheSpec.of(config), range(4))
    frames, columns = clip.visible.shape
    with torch.no_grad(), counter() as seen:
        text_kv = encode_text(draw(2, 96, 32))
        forward_packed(draw(2, 4, frames, 8, 8), torch.ones(2, frames), text_kv, clip)
    long = dataclasses.replace(config, chunk=frames)
    whole = PassCost(config=long, batch=2, keys=columns * config.tokens_per_frame)
    assert seen.get_total_flops() == whole.flops + text_flops(config, 2)
    [attention] = [part.flops for part in whole.parts() if part.name == "attention"]
    hidden = attention * float((~clip.visible).float().mean())
    assert meter.take(1.0).flops == pytest.approx(whole.flops + text_flops(config, 2) - hidden)
    assert hidden > 0


def test_tokens_are_those_that_learn():
    config, training = named_config("debug"), DISTILLATION.forcing
    stage = stage_of("forcing")
    stage.loss(0)
    chunk = training.clips * config.chunk * config.tokens_per_frame
    # Each chunk is denoised once and committed, but for the last.
    assert stage.meter.take(1.0).tokens == (2 * training.chunks - 1) * chunk
    with torch.no_grad():
        stage.loss(0)
    assert stage.meter.take(1.0).tokens == 0


@pytest.mark.parametrize("name", ["codec", "text"])
def test_counting_once_for_each_shape_changes_nothing(name):
    def make():
        if name == "codec":
            return CodecStage(RECIPE.codec, RECIPE.codec_training)
        return TextStage(RECIPE.text, RECIPE.model.text_tokens, RECIPE.text_training)

    stage, plain = make(), make()
    plain.meter.counting = lambda *shape, tokens=0: torch.enable_grad()
    losses = [stage.loss(0), stage.loss(0)]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], plain.loss(0))
    for one in (stage, plain):
        one.loss(1).backward()
    for ours, theirs in zip(stage.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    three = stage.meter.take(1.0)
    stage.loss(0)
    one = stage.meter.take(1.0)
    assert_close(torch.tensor(three.flops), torch.tensor(3 * one.flops), rtol=1e-6, atol=0)
    ran, said = counted(stage, stage.loss)
    assert 0.8 * said < ran <= said


def test_time_without_a_batch_is_measured():
    meter = Meter(torch.float32)
    with meter.waiting():
        time.sleep(0.02)
    with meter.waiting():
        time.sleep(0.02)
    assert 0.04 <= meter.take(1.0).waited < 0.5
    assert meter.take(1.0).waited == 0


def test_speed_is_work_by_time_and_peak():
    work = Work(tokens=600, flops=2e9, waited=0.5, seconds=2.0)
    speed = Speed.of(work, peak=4e9, world=2)
    assert speed == Speed(tokens_per_second=600.0, utilisation=0.25, waiting=0.25)
    assert str(speed) == "600 tokens/s, 25% of the matrix peak, 25.0% waiting for data"
    speeds = Speedometer(4e9, 1)
    for _ in range(30):
        speeds.add(work)
    assert speeds.add(dataclasses.replace(work, flops=4e9)).utilisation == 0.5
    assert 0.25 < speeds.whole.utilisation < speeds.recent.utilisation < 0.3


def test_the_peak_is_more_than_any_model_reaches():
    peak = matrix_peak(torch.float32, torch.device("cpu"))
    assert 1e8 < peak < 1e15
    assert matrix_peak(torch.float32, torch.device("cpu")) == peak


def test_every_line_of_the_log_has_its_speed(tmp_path):
    lines = []
    train(stage_of("forcing"), tmp_path, report=lines.append)
    logged = [json.loads(line) for line in (tmp_path / "denoiser.jsonl").read_text().splitlines()]
    assert len(logged) == DISTILLATION.forcing.schedule.steps
    for line in logged:
        assert line["tokens_per_second"] > 0
        assert 0 < line["utilisation"] < 1.5
        assert 0 <= line["waiting"] < 1
    assert "tokens/s, " in lines[-1]
    assert "% of the matrix peak, " in lines[-1]
    mean = mean_speed(tmp_path / "denoiser.jsonl")
    assert_close(
        torch.tensor(mean["waiting"]), torch.tensor([line["waiting"] for line in logged]).mean(),
        rtol=0, atol=1e-4,
    )  # fmt: skip


def test_a_log_that_began_without_speeds_goes_on(tmp_path):
    train(stage_of("forcing"), tmp_path, report=lambda line: None, stop_after=2)
    log = tmp_path / "denoiser.jsonl"
    kept = ("step", "loss", "rate", "seconds")
    old = [{key: json.loads(line)[key] for key in kept} for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert mean_speed(log) == {}
    train(stage_of("forcing"), tmp_path, report=lambda line: None)
    assert last_record(log)["step"] == DISTILLATION.forcing.schedule.steps
    assert mean_speed(log)["tokens_per_second"] > 0
