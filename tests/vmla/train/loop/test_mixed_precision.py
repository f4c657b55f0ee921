"""The type that a stage computes in: what is asked for, else the faster one; runs go on in either."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from kit.measure import assert_close
from kit.tiny.models import draw, randomise

from vmla.train.data.latents import LatentSet
from vmla.train.loop.loop import train
from vmla.train.optim import precision
from vmla.train.optim.precision import product_seconds, resolve
from vmla.train.recipes.from_scratch import PRETRAINING_RECIPES
from vmla.train.stages.denoiser import DenoiserStage
from vmla.train.stages.text_encoder import TextStage
from vmla.transformer import VideoMLA

pytestmark = pytest.mark.cpu

CPU, DEBUG = torch.device("cpu"), PRETRAINING_RECIPES["debug"]
WIDE, NARROW = torch.float32, torch.bfloat16


class Clock:
    """Says of a product in a type what it is told to, and counts how often it is asked."""

    def __init__(self, **seconds):
        self.left = {getattr(torch, name): list(values) for name, values in seconds.items()}
        self.asked = 0

    def __call__(self, dtype):
        self.asked += 1
        values = self.left[dtype]
        return values.pop(0) if len(values) > 1 else values[0]


@pytest.mark.parametrize(("wide", "narrow", "chosen"), [(1.0, 0.5, NARROW), (1.0, 20.0, WIDE)])
def test_a_cpu_computes_in_the_faster_type(wide, narrow, chosen):
    assert resolve("auto", CPU, Clock(float32=[wide], bfloat16=[narrow])) == chosen


def test_what_else_the_machine_does_does_not_decide():
    """Of the narrow type every round but one was disturbed, of the wide one only the first."""
    clock = Clock(float32=[9.0, 1.0], bfloat16=[9.0, 5.0, 0.5, 7.0])
    assert resolve("auto", CPU, clock) == NARROW


def test_it_is_measured_once_for_each_number_of_threads():
    clock, threads = Clock(float32=[1.0], bfloat16=[2.0]), torch.get_num_threads()
    assert resolve("auto", CPU, clock) == resolve("auto", CPU, clock) == WIDE
    once = clock.asked
    assert once == 2 * precision.ROUNDS
    try:
        torch.set_num_threads(threads + 1)
        resolve("auto", CPU, clock)
    finally:
        torch.set_num_threads(threads)
    assert clock.asked == 2 * once


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_what_is_asked_for_is_not_measured(name):
    def measure(dtype):
        raise AssertionError

    assert resolve(name, CPU, measure) == getattr(torch, name)
    assert resolve("auto", torch.device("cuda"), measure) == NARROW


def test_measuring_takes_time_and_no_random_numbers():
    before = torch.get_rng_state()
    assert 0 < product_seconds(WIDE) < 60
    assert resolve("auto", CPU) in (WIDE, NARROW)
    assert torch.equal(torch.get_rng_state(), before)


# Stages


def denoiser(name, dtype=None):
    """A stage that asks for `name`, on a machine that chose `dtype`."""
    model = DEBUG.model
    latents = draw(4, model.in_channels, 12, model.sample_height, model.sample_width).half()
    text = draw(4, model.text_tokens, model.text_dim, seed=1).half()
    training = dataclasses.replace(DEBUG.denoiser_training, precision=name)
    # A fresh network's gates and head are zero: nothing in it would reach the loss.
    network = randomise(VideoMLA(model)).requires_grad_(True)
    return chosen(DenoiserStage(model, training, LatentSet(latents, text, {}), model=network), dtype)


def text_stage(name, dtype=None):
    training = dataclasses.replace(DEBUG.text_training, precision=name)
    return chosen(TextStage(DEBUG.text, DEBUG.model.text_tokens, training), dtype)


def chosen(stage, dtype):
    if dtype is not None:
        stage.meter.dtype = dtype
    return stage


@pytest.mark.parametrize("make", [denoiser, text_stage])
def test_both_types_learn_alike(make, tmp_path):
    """To three digits: a loss is a mean over many numbers that are each rounded to eight bits."""
    losses = {name: [] for name in ("float32", "bfloat16")}
    for name, found in losses.items():

        def watch(stage, line, average, found=found):
            found.append(line["loss"])

        train(make(name), tmp_path / name, report=lambda line: None, watchers=[watch])
    wide, narrow = (torch.tensor(found) for found in losses.values())
    assert not torch.equal(wide, narrow)
    assert_close(narrow, wide, rtol=3e-3, atol=0)


@pytest.mark.parametrize("make", [denoiser, text_stage])
@pytest.mark.parametrize(("first", "then"), [(NARROW, WIDE), (WIDE, NARROW)], ids=str)
def test_a_run_goes_on_where_another_type_is_faster(make, first, then, tmp_path):
    lines = []
    assert train(make("auto", first), tmp_path, report=lines.append, stop_after=2) is None
    average = train(make("auto", then), tmp_path, report=lines.append)
    whole = train(make("auto", first), tmp_path / "whole", report=lines.append)
    for said, dtype in zip((lines[0], lines[2], lines[4]), (first, then, first), strict=True):
        assert f" s per step in {str(dtype).removeprefix('torch.')}, " in said
    assert all(tensor.dtype == torch.float32 for tensor in average.values())
    apart = max(float((average[name] - tensor).abs().max()) for name, tensor in whole.items())
    assert 0 < apart < 1e-3


def test_processes_that_train_together_take_the_firsts_choice(monkeypatch):
    """The second one would choose float32 by itself."""

    def broadcast(shared, src):
        assert src == 0
        shared[0] = NARROW

    alike = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, broadcast_object_list=broadcast
    )
    monkeypatch.setattr(torch, "distributed", alike)
    assert resolve("auto", CPU, Clock(float32=[1.0], bfloat16=[2.0])) == NARROW
