"""Training on another device than main memory's: PyTorch's `meta` stands for it, which holds no numbers."""

import contextlib
from dataclasses import replace

import pytest
import torch
from torch.fx.experimental import _config

from plugins.errors import UserError
from vmla.cli.options.device import choose_device, device_line
from vmla.train.data.latents import LatentSet
from vmla.train.loop.parallel import processes
from vmla.train.recipes.from_scratch import DEBUG
from vmla.train.stages.codec import CodecStage
from vmla.train.stages.decoder import DecoderStage
from vmla.train.stages.denoiser import DenoiserStage
from vmla.train.stages.text_encoder import TextStage
from vmla.vae.tiny import TinyCodec

pytestmark = pytest.mark.cpu

ELSEWHERE = torch.device("meta")


@pytest.fixture
def another_device(monkeypatch):
    """What `meta` lacks and a GPU has: random numbers, automatic types, a count of what is not zero."""
    for stage in ("codec", "decoder", "denoiser"):
        monkeypatch.setattr(f"vmla.train.stages.{stage}.seeded", lambda device, seed: torch.Generator())
    monkeypatch.setattr("torch.autocast", lambda *_, **__: contextlib.nullcontext())
    with _config.patch(meta_nonzero_assume_all_nonzero=True):
        yield


def denoiser():
    model, frames = DEBUG.model, 12
    data = LatentSet(
        torch.zeros(4, model.in_channels, frames, model.sample_height, model.sample_width).half(),
        torch.zeros(4, model.text_tokens, model.text_dim).half(),
        {},
        labels=torch.zeros(4, frames, model.tokens_per_frame, 5).half(),
    )
    training = replace(DEBUG.denoiser_training, alignment=1.0, alignment_layer=1)
    return DenoiserStage(model, training, data.to(ELSEWHERE), device=ELSEWHERE)


@pytest.mark.parametrize(
    "begin",
    [
        lambda: CodecStage(DEBUG.codec, DEBUG.codec_training, ELSEWHERE),
        lambda: DecoderStage(TinyCodec(DEBUG.codec), DEBUG.decoder_training, ELSEWHERE),
        lambda: TextStage(DEBUG.text, DEBUG.model.text_tokens, DEBUG.text_training, ELSEWHERE),
        denoiser,
    ],
    ids=["codec", "decoder", "text", "denoiser"],
)
def test_a_stage_computes_where_it_is_told_to(another_device, begin):
    """An operation between two devices would be refused."""
    stage = begin()
    loss = stage.loss(0)
    loss.backward()
    gradients = [each.grad for each in stage.model.parameters() if each.grad is not None]
    assert {each.device for each in (loss, *gradients)} == {ELSEWHERE} and len(gradients) > 10


@pytest.mark.parametrize(("there", "kind"), [(False, "cpu"), (True, "cuda")])
def test_auto_is_a_gpu_if_there_is_one(monkeypatch, there, kind):
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    monkeypatch.setattr("torch.empty", lambda *_, **__: None)  # where it would look for the device
    with processes(1, "auto") as parallel:
        assert parallel.device == choose_device("auto") == torch.device(kind)
    assert choose_device("cpu") == torch.device("cpu")


def test_a_device_that_is_not_there_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"no device 'cdua' here; .*; did you mean cuda\?"):
        choose_device("cdua")


def test_a_gpu_is_called_by_its_name(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H200")
    assert device_line(torch.device("cuda", 1)) == "device: cuda:1, NVIDIA H200"
    assert device_line(torch.device("cpu")) == "device: cpu"
