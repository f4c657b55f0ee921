"""Chunks of one frame, of three, and of one and then three: one rollout, held against a masked forward."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from kit.measure import assert_close
from kit.processes.sessions import make_video
from kit.references.equations import Equations
from kit.refusals import assert_one_line
from kit.tiny.checkpoints import debug_checkpoint
from kit.tiny.engines import Words, tiny_engine
from kit.tiny.frames import frames_of
from kit.tiny.models import tiny_model

from plugins.errors import UserError
from runtime.cli.export import main as vmla_export
from runtime.outputs import NullSink
from runtime.planning.request import prepare
from runtime.prompts.schedule_file import ScheduleEntry, to_schedule
from runtime.prompts.sources import FixedPrompts, PromptChange, PromptSchedule
from runtime.resume.state import Snapshot
from runtime.rollout.rollout import Rollout
from runtime.telemetry.events import NoTelemetry
from vmla.cache import ChunkLengths
from vmla.config import ModelConfig, named_config
from vmla.scheduler import Sampler, keyed_noise

pytestmark = pytest.mark.cpu

RED, BLUE = "a red star bouncing on a navy background", "a blue ring resting on a gray background"
RENOISE = Sampler(kind="renoise", steps=2)
LENGTHS = {
    "1": {"chunk": 1, "sink": 1, "history": 3},
    "3": {"chunk": 3, "sink": 1, "history": 5},
    "1, 3, 3": {"chunk": 3, "first_chunk": 1, "sink": 1, "history": 6},
    "2, 3, 3, no whole ring": {"chunk": 3, "first_chunk": 2, "sink": 3, "history": 4},
}
FRAMES = 16
"""Enough for windows that fill, are full, and have moved on."""


class Recorder:
    """An engine that keeps what it was given and gave at each step."""

    def __init__(self, engine):
        self._engine, self.steps = engine, []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def step(self, inputs, *, held):
        velocity, entries = self._engine.step(inputs, held=held)
        self.steps.append((inputs.latents.clone(), inputs.timestep.clone(), velocity))
        return velocity, entries


def made_by(videos, chunks):
    latents = []
    while videos.number < chunks:
        latents.append(videos.denoise())
        videos.update_cache()
    return latents


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_a_rollout_equals_one_full_masked_forward_over_all_its_frames(layout, lengths):
    """Every step of every chunk, after the chunks that the rollout itself has made."""
    engine = Recorder(tiny_engine(layout=layout, **lengths))
    config = engine.config
    chunks = engine.cache_spec.chunks.count(FRAMES)
    videos = Rollout(engine, FixedPrompts(RED, BLUE), RENOISE, seeds=[3, 8])
    latents = made_by(videos, chunks)
    assert [chunk.shape[2] for chunk in latents] == [len(frames_of(config, n)) for n in range(chunks)]
    clean, text = torch.cat(latents, dim=2), Words(config)([RED, BLUE])
    equations = Equations(tiny_model(layout=layout, **lengths))
    for step in range(RENOISE.steps):
        parts = zip(*engine.steps[step :: RENOISE.steps], strict=True)
        noisy, timestep, velocity = (torch.cat(part, dim) for part, dim in zip(parts, (2, 1, 2), strict=True))
        expected = equations.run(clean, noisy, timestep, text)[0][:, :, clean.shape[2] :]
        assert expected.std() > 0.1
        assert_close(velocity, expected, rtol=2e-4, atol=2e-4)


def test_noise_is_keyed_by_seed_chunk_and_step_in_chunks_of_any_length():
    engine = Recorder(tiny_engine(**LENGTHS["1, 3, 3"]))
    made_by(Rollout(engine, FixedPrompts(RED), RENOISE, seeds=[5]), 3)
    config = engine.config
    for number, (latents, _, _) in enumerate(engine.steps[:: RENOISE.steps]):
        shape = config.in_channels, len(frames_of(config, number)), config.sample_height, config.sample_width
        assert torch.equal(latents[0], keyed_noise(shape, seed=5, chunk=number, step=0))


def test_chunks_of_two_lengths_share_one_cache_and_what_comes_again_is_captured(monkeypatch):
    captures = []

    def captured(function, *_):
        captures.append(function)
        return function

    monkeypatch.setattr("runtime.rollout.graphs.captured", captured)
    changes = [(0, RED, "keep"), (2, BLUE, "recache"), (7, RED, "reset")]
    prompts = PromptSchedule([PromptChange(chunk=n, prompts=(text,), policy=how) for n, text, how in changes])
    videos = Rollout(tiny_engine(**LENGTHS["1, 3, 3"]), prompts, RENOISE, seeds=[1])
    cache = videos.buffers.cache
    made_by(videos, 9)
    assert videos.buffers.cache is cache
    assert len(captures) == 4  # steps and clean pass, of a filling window and of a full one


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_it_goes_on_from_a_snapshot(stop):
    changes = [(0, RED, "keep"), (2, BLUE, "recache"), (5, RED, "reset")]
    prompts = PromptSchedule([PromptChange(chunk=n, prompts=(text,), policy=how) for n, text, how in changes])
    whole, half, rest = (
        Rollout(tiny_engine(**LENGTHS["1, 3, 3"]), prompts, RENOISE, seeds=[1]) for _ in range(3)
    )
    wanted = made_by(whole, 8)
    made_by(half, stop)
    Snapshot.of(half).restore(rest)
    assert rest.frame == half.frame
    for one, other in zip(made_by(rest, 8), wanted[stop:], strict=True):
        assert torch.equal(one, other)


@pytest.fixture(scope="module")
def short_first(tmp_path_factory):
    """A checkpoint whose first chunk has one latent frame."""
    folder = tmp_path_factory.mktemp("first") / "model"
    return debug_checkpoint(folder, first_chunk=1, history=6)


def test_a_video_has_the_length_that_its_chunks_say(short_first):
    job, frames = prepare(RED, short_first, chunks=3)
    assert frames == 4 * (1 + 3 + 3) == job.plan().frames
    assert make_video(job, NullSink(), NoTelemetry(), frames=frames).frames == frames
    job, frames = prepare(RED, short_first, seconds=2)
    assert (frames, job.chunks) == (32, 4)


def test_with_wans_codec_a_first_chunk_of_one_frame_is_one_picture(short_first):
    codec = prepare(RED, short_first, chunks=1)[0].decoding.sizes()
    codec.config = replace(codec.config, first_frames=1)
    lengths = ChunkLengths(first=1, following=3)
    entries = [
        ScheduleEntry(at=0.0, prompt=RED),
        ScheduleEntry(at=0.05, prompt=BLUE),
        ScheduleEntry(at=1.0, prompt=RED),
    ]
    schedule = to_schedule(entries, chunks=5, lengths=lengths, codec=codec)
    # Chunks begin at frames 0, 1, 13 and 25.
    assert [change.chunk for change in schedule.changes] == [0, 1, 3]
    with pytest.raises(UserError, match="keep them 0.75 s apart"):
        to_schedule(
            [*entries[:2], ScheduleEntry(at=0.06, prompt=RED)], chunks=5, lengths=lengths, codec=codec
        )


def test_no_engine_is_built_for_chunks_of_two_lengths(short_first, tmp_path):
    command = ["build", "--backend", "aoti", "--checkpoint", str(short_first), "-o", str(tmp_path / "engine")]
    refused = CliRunner().invoke(vmla_export, command)
    assert_one_line(refused, "a first chunk of 1 latent frames and others of 3", "run it without one")


def test_a_configuration_names_a_first_chunk_only_where_it_is_set():
    config = named_config("debug")
    assert "first_chunk" not in config.to_dict() | config.identity()
    short = replace(config, first_chunk=1)
    assert short.to_dict()["first_chunk"] == short.identity()["first_chunk"] == 1
    assert ModelConfig.from_dict(short.to_dict()) == short
    with pytest.raises(UserError, match="first_chunk is 4; it is at most chunk, which is 3"):
        replace(config, first_chunk=4)
