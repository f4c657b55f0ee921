"""Denoiser and decoder have cores of their own, and the number of threads is part of what makes a video."""

import json
import threading

import pytest
import torch
from click.testing import CliRunner
from kit.refusals import assert_one_line

from runtime.cli.run import main
from runtime.device.threads import Cores, using
from runtime.engines.base import EagerEngine
from runtime.prompts.sources import FixedPrompts
from runtime.rollout.decoding import CodecDecoder
from runtime.rollout.rollout import rollout
from vmla.scheduler import Sampler
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

CPU = torch.device("cpu")
PROMPT = "a red star bouncing on a navy background"


@pytest.mark.parametrize(
    ("threads", "denoiser", "decoder"), [(1, 1, 1), (2, 1, 1), (3, 2, 1), (4, 3, 1), (8, 6, 2), (64, 48, 16)]
)
def test_a_quarter_decodes_and_nobody_goes_without(threads, denoiser, decoder):
    assert Cores.of(threads, CPU, silent=False) == Cores(denoiser=denoiser, decoder=decoder)
    assert Cores.of(threads, CPU, silent=True).denoiser == threads


def test_on_a_gpu_threads_are_left_alone():
    gpu = torch.device("cuda")
    assert Cores.of(8, gpu, silent=False, text_device=gpu) == Cores(denoiser=None, decoder=None)
    assert Cores.of(8, gpu, silent=False, text_device=CPU) == Cores(denoiser=8, decoder=None)  # for prompts


def test_threads_are_as_before_afterwards():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), using(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
    with using(None):
        assert torch.get_num_threads() == before


def test_one_thread_does_not_change_another():
    seen, entered, left = [], threading.Event(), threading.Event()

    def other():
        with using(1):
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=other)
    with using(2):
        thread.start()
        assert entered.wait(10)
        seen.append(torch.get_num_threads())
    left.set()
    thread.join(10)
    assert seen == [2]


class Watched(EagerEngine):
    """Notes how many threads compute."""

    seen: set[int]

    def step(self, inputs, *, held):
        self.seen.add(torch.get_num_threads())
        return super().step(inputs, held=held)

    def entries(self, inputs, *, held):
        self.seen.add(torch.get_num_threads())
        return super().entries(inputs, held=held)


def test_every_pass_has_the_denoisers_threads_and_every_decoding_the_decoders(checkpoint):
    opened = open_checkpoint(checkpoint)
    engine = Watched(opened.transformer(), opened.text(), device=CPU, dtype=torch.float32)
    engine.seen, decoded, codec = set(), set(), opened.codec()
    decode = codec.decode
    codec.decode = lambda *inputs: decoded.add(torch.get_num_threads()) or decode(*inputs)
    made = rollout(
        engine, CodecDecoder(codec, CPU, 2), FixedPrompts(PROMPT), Sampler(kind="euler", steps=2),
        seeds=[0], chunks=3, threads=3,
    )  # fmt: skip
    before = torch.get_num_threads()
    assert len(list(made)) == 3
    assert (engine.seen, decoded) == ({3}, {2})
    assert torch.get_num_threads() == before


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_a_repeat_takes_the_threads_of_the_first_time(checkpoint, tmp_path):
    first, again = tmp_path / "first.mp4", tmp_path / "again.mp4"
    asked = ("--prompt", PROMPT, "--checkpoint", checkpoint, "--chunks", 3, "--scale", 1)
    assert run(*asked, "--threads", 3, "-o", first).exit_code == 0
    sidecar = tmp_path / "first.mp4.json"
    assert json.loads(sidecar.read_text())["threads"] == 3
    assert run("--repeat", sidecar, "-o", again).exit_code == 0
    assert again.read_bytes() == first.read_bytes()
    assert_one_line(
        run("--repeat", sidecar, "--threads", 2, "-o", again, "--overwrite"),
        "was made with another number of threads: 3, not 2",
    )
    assert run(*asked, "--threads", 0, "-o", again).exit_code == 2
