"""`vmla-run --decoder`: another codec's frames, what is recorded and refused, and none at all."""

import json
import re
import threading

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from kit.processes.sessions import StopAt, make_video
from kit.references.taehv import random_taehv
from kit.refusals import assert_one_line
from kit.tiny.models import draw

from runtime.cli.run import main
from runtime.outputs import NullSink
from runtime.outputs.writer import to_pixels
from runtime.planning.request import prepare
from runtime.resume.autosave import Autosave
from runtime.resume.sidecar import sidecar_path
from runtime.resume.state import state_path
from runtime.rollout.decoding import NOTHING, NoDecoder
from runtime.rollout.rollout import rollout
from runtime.session.destination import open_sink
from runtime.session.replay import new
from runtime.session.session import Session
from vmla.vae.wan import state_bytes

pytestmark = pytest.mark.cpu

PROMPT = "a red star bouncing on a navy background"
CHUNKS = 4
EXPECTED = 12 * CHUNKS - 3
"""Frames: the first latent frame gives one."""


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def asked(checkpoint, *more):
    return ("--prompt", PROMPT, "--checkpoint", checkpoint, "--chunks", CHUNKS, "--scale", 1, *more)


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    """A folder with weights of two decoders for the debug model's latents, and one for Wan's."""
    folder = tmp_path_factory.mktemp("decoders")
    for seed in (0, 1):
        torch.save(random_taehv(seed=seed).state_dict(), folder / f"{seed}.pth")
    torch.save(random_taehv("taew2_1").state_dict(), folder / "wan.pth")
    return folder


@pytest.fixture(scope="module")
def whole(checkpoint, decoders, tmp_path_factory):
    """A video decoded by the first, as pictures that lose nothing."""
    output = tmp_path_factory.mktemp("whole") / "pictures"
    result = run(*asked(checkpoint, "--decoder", decoders / "0.pth"), "-o", output)
    assert result.exit_code == 0, result.output
    assert f"decoder: {decoders / '0.pth'}" in result.output
    return output


def pictures(folder):
    frames = []
    for path in sorted(folder.glob("*.png")):
        with av.open(str(path)) as file:
            frames += [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return np.stack(frames)


def test_frames_are_those_of_the_decoder(checkpoint, whole):
    """The latents of the rollout, decoded at once by the same weights."""
    job, frames = prepare(PROMPT, checkpoint, chunks=CHUNKS)
    assert frames == 12 * CHUNKS
    made = rollout(job.engine(), NoDecoder(), job.prompts, job.sampler, seeds=[0], chunks=CHUNKS)
    latents = torch.cat([chunk.frames for chunk in made], dim=1).transpose(1, 2)
    expected = to_pixels(random_taehv().decode(latents)[0][0])
    got = pictures(whole)
    assert got.shape == (EXPECTED, 64, 64, 3)
    assert got.std() > 20
    # Convolutions over other batches of frames round differently, by at most one step of 255.
    assert np.abs(got.astype(int) - expected).max() <= 1


def test_it_is_recorded_and_repeated(whole, decoders, tmp_path):
    told = json.loads(sidecar_path(whole).read_text())
    assert (told["decoder"], told["decoder_file"]) == ("debug", str(decoders / "0.pth"))
    assert told["frames"] == told["frames_written"] == EXPECTED
    result = run("--repeat", sidecar_path(whole), "-o", tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert np.array_equal(pictures(tmp_path / "again"), pictures(whole))


def stopped(order, output):
    """Make the first chunks of `order` and leave its state."""
    stop = threading.Event()
    autosave = Autosave(output, order.describe, every=0.0)
    outcome = make_video(order.job, open_sink(output, scale=1), StopAt(stop, 1), frames=order.frames,
                         stop=stop, autosave=autosave)  # fmt: skip
    assert not outcome.complete
    assert state_path(output).exists()


def test_it_goes_on_with_the_same_decoder_and_no_other(checkpoint, decoders, whole, tmp_path):
    output = tmp_path / "video"
    order = new(PROMPT, checkpoint, scale=1, chunks=16, decoder=decoders / "0.pth")
    stopped(order, output)
    assert_one_line(run("--resume", output, "--decoder", decoders / "1.pth"), "another decoder_hash")
    assert_one_line(run("--resume", output, "--decoder", "none"), "--decoder none makes no frames for")
    result = run("--resume", output)
    assert result.exit_code == 0, result.output
    got = pictures(output)
    assert len(got) == 12 * 16 - 3
    assert np.array_equal(got[:EXPECTED], pictures(whole))


def test_a_video_of_the_own_codec_is_not_gone_on_with_by_another(checkpoint, decoders, tmp_path):
    output = tmp_path / "own"
    stopped(new(PROMPT, checkpoint, scale=1, chunks=40), output)
    said = run("--resume", output, "--decoder", decoders / "0.pth")
    assert_one_line(said, "was made with another decoder: own, not debug")


def test_no_decoder_makes_no_frames(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*asked(checkpoint, "--decoder", "none", "--events", "events.jsonl"), "-o", "null")
    assert result.exit_code == 0, result.output
    assert "decoder: none (no frames are made)" in result.output
    assert "null: 0 frames" in result.output
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["chunk"], event["frames"]) for event in events] == [(n, 0) for n in range(CHUNKS)]
    for output in ("a.mp4", "pictures"):
        assert_one_line(run(*asked(checkpoint, "--decoder", "none"), "-o", output), f"no frames for {output}")
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


def test_a_stop_without_frames_is_no_whole_video(checkpoint):
    order, stop = new(PROMPT, checkpoint, scale=1, chunks=40, decoder=NOTHING), threading.Event()
    outcome = make_video(order.job, NullSink(), StopAt(stop, 1), frames=order.frames, stop=stop)
    assert (outcome.complete, outcome.frames) == (False, 0)


@pytest.mark.parametrize("dry", [True, False])
def test_wrong_decoders_are_refused_in_one_line(checkpoint, decoders, tmp_path, dry):
    rest = ("--dry-run",) if dry else ("-o", tmp_path / "a.mp4")
    torch.save({"decoder.1.weight": torch.ones(16, 4, 3, 3)}, tmp_path / "part.pth")
    for file, fragment in (
        (decoders / "wan.pth", "decodes latents of 16 channels"),
        (tmp_path / "part.pth", "lacks the tensor"),
        (tmp_path / "nowhere.pth", "there is no file"),
        (tmp_path / "a.bin", "ends in .pth"),
    ):
        assert_one_line(run(*asked(checkpoint, "--decoder", file), *rest), fragment)
    assert not (tmp_path / "a.mp4").exists()


def plan_of(checkpoint, *more):
    """The memory by part that --dry-run prints."""
    result = run(*asked(checkpoint, *more, "--dry-run"))
    assert result.exit_code == 0, result.output
    pairs = re.findall(r"^([a-z ]+): ([\d,]+) bytes(?: \(\S+ \wiB\))?$", result.output, re.MULTILINE)
    return result.output, {part: int(count.replace(",", "")) for part, count in pairs}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_plan_is_what_the_decoder_takes(checkpoint, decoders, dtype):
    """Every part against the tensors themselves; 3 % would do, they are equal."""
    file = decoders / "0.pth"
    output, plan = plan_of(checkpoint, "--decoder", file, "--dtype", dtype)
    assert f"{EXPECTED} frames of 64x64" in output
    job, _ = prepare(PROMPT, checkpoint, chunks=CHUNKS, decoder=file, dtype=dtype)
    decoder = job.decoders()()
    decoder.decode(draw(1, 4, 3, 8, 8))
    assert plan["codec"] == sum(tensor.nbytes for tensor in decoder._codec.state_dict().values())
    assert plan["decoder memory"] == state_bytes(decoder.state)


def test_the_plan_without_a_decoder_has_none(checkpoint):
    output, plan = plan_of(checkpoint, "--decoder", "none")
    _, own = plan_of(checkpoint)
    assert "decoder: none" in output
    assert (plan["codec"], plan["decoder memory"]) == (0, 0)
    assert own["codec"] > 0
    differing = {part for part in own if own[part] != plan[part]}
    assert differing == {"codec", "decoder memory", "scratch of decoding"}


def test_streams_share_one_decoder(checkpoint, decoders):
    job, frames = prepare(PROMPT, checkpoint, chunks=2, decoder=decoders / "0.pth")
    sinks = [NullSink(), NullSink()]
    with Session(job, memory=1 << 40) as session:
        for sink in sinks:
            session.admit(job, sink, frames=frames)
        session.run()
    assert [sink.mark()["frames"] for sink in sinks] == [21, 21]
