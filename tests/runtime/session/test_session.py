"""Several videos on one engine: each as if alone, in the order of their deadlines, as many as fit."""

from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from kit.processes.galleries import Gallery

from plugins.errors import UserError
from runtime.outputs import NullSink
from runtime.planning.request import prepare
from runtime.prompts.sources import FixedPrompts, PromptChange, PromptSchedule
from runtime.rollout.buffers import Buffers
from runtime.rollout.recache import LatentHistory
from runtime.session.session import Session
from runtime.telemetry.events import NoTelemetry
from vmla.vae.wan import state_bytes

pytestmark = pytest.mark.cpu

RED, BLUE = "a red star bouncing on a navy background", "a blue ring resting on a gray background"
PLENTY = 1 << 40


@pytest.fixture(scope="module")
def job(checkpoint):
    return prepare(RED, checkpoint, chunks=5)[0]


def others(job):
    """Three videos that differ in length, prompt and seed."""
    switch = [PromptChange(chunk=0, prompts=(RED,)), PromptChange(chunk=2, prompts=(BLUE,), policy="recache")]
    return [
        replace(job, seed=1),
        replace(job, seed=2, chunks=3, prompts=FixedPrompts(BLUE)),
        replace(job, seed=3, chunks=4, prompts=PromptSchedule(switch)),
    ]


def alone(job):
    sink = Gallery()
    with Session(job, memory=PLENTY) as session:
        session.admit(job, sink, frames=12 * job.chunks)
        session.run()
    return np.concatenate(sink.frames)


def test_streams_together_are_what_each_is_alone(job):
    sinks, order = [], []
    with Session(job, memory=PLENTY, clock=lambda: 0.0) as session:
        for one in others(job):
            sinks.append(Gallery())
            session.admit(one, sinks[-1], frames=12 * one.chunks)
        while (stream := session.step()) is not None:
            order.append(stream.number)
    assert sorted(order) == [0] * 5 + [1] * 3 + [2] * 4
    assert sorted(order[:3]) == [0, 1, 2]  # nobody waits while another is ahead
    for sink, one in zip(sinks, others(job), strict=True):
        assert np.array_equal(np.concatenate(sink.frames), alone(one))


def test_the_stream_that_is_due_first_goes_on(job):
    with Session(job, memory=PLENTY, clock=iter([0.0, 1.6]).__next__) as session:
        early = session.admit(job, NullSink(), frames=60)
        assert [session.step() for _ in range(3)] == [early] * 3
        late = session.admit(replace(job, seed=9), NullSink(), frames=60)
        # The first has frames until 2.25 s, the second is let in at 1.6 s and has none until it is ahead.
        assert [session.step() for _ in range(3)] == [late, early, late]


def test_more_streams_than_memory_are_refused(job):
    plan = job.plan()
    shared, own = sum(plan.shared.values()), plan.video_bytes
    with Session(job, memory=shared + 2 * own) as session:
        assert session.capacity == 2
        for _ in range(2):
            session.admit(job, NullSink(), frames=60)
        with pytest.raises(UserError, match="hold 2 videos and no more; end one, or allow"):
            session.admit(job, NullSink(), frames=60)
        session.run()
        session.admit(job, NullSink(), frames=60)
    assert plan.videos_in(shared + own - 1) == 0
    assert plan.videos_in(0) == 0


def test_another_kind_of_stream_is_refused(job):
    with Session(job, memory=PLENTY) as session, pytest.raises(UserError, match="another sampler"):
        session.admit(replace(job, sampler=replace(job.sampler, steps=3)), NullSink(), frames=12)


class Vanishing(NullSink):
    """Fails after its first chunk."""

    def write(self, frames):
        super().write(frames)
        if self.mark()["frames"] > 12:
            raise OSError(32, "Broken pipe")


def test_one_that_fails_ends_alone(job):
    whole = Gallery()
    with Session(job, memory=PLENTY) as session:
        broken = session.admit(replace(job, chunks=40), Vanishing(), frames=480)
        session.admit(job, whole, frames=60)
        session.run()
        assert isinstance(broken.failure, OSError)
        assert broken.made < 40
    assert np.array_equal(np.concatenate(whole.frames), alone(job))


def test_the_plan_counts_what_guidance_is_told(job):
    guided = replace(job, sampler=replace(job.sampler, guidance_scale=2.0))
    buffers = Buffers(job.engine(), guided.sampler, batch=1, frames=3)
    told = buffers.text_kv.nbytes + buffers.negative_text_kv.nbytes
    assert guided.plan().own["text keys and values"] == told == 2 * job.plan().own["text keys and values"]


def test_the_plan_of_a_stream_is_what_it_takes(job):
    """Every part against the tensors themselves; 3 % would do, they are equal."""
    engine, decoder, own = job.engine(), job.decoders()(), job.plan().own
    buffers = Buffers(engine, job.sampler, batch=1, frames=3)
    decoder.decode(torch.randn(1, 4, 3, 8, 8))
    assert own["latent cache"] == buffers.cache.nbytes
    assert own["text keys and values"] == buffers.text_kv.nbytes
    assert own["noise and latents of a chunk"] == buffers.noise.nbytes + buffers.latents.nbytes
    assert own["latents of the window"] == LatentHistory.capacity(engine.cache_spec) * buffers.latents.nbytes
    assert own["decoder memory"] == state_bytes(decoder.state)
    held = [tensor.untyped_storage() for tensor in decoder.state]
    assert sum(storage.nbytes() for storage in held) == own["decoder memory"]


def test_all_streams_share_one_set_of_graphs(job, monkeypatch):
    """What they hold for a moment is in the plan once."""
    pools = []
    monkeypatch.setattr("runtime.rollout.graphs.graph_pool", lambda device: "the pool")
    monkeypatch.setattr(
        "runtime.rollout.graphs.captured", lambda function, device, pool: pools.append(pool) or function
    )
    with Session(job, memory=PLENTY) as session:
        for seed in range(2):
            session.admit(replace(job, seed=seed, chunks=2), NullSink(), frames=24)
        session.run()
    assert pools == ["the pool"] * 2  # steps and clean pass of a window that fills


class Memory(NoTelemetry):
    def __init__(self):
        self.most = 0

    def chunk(self, report):
        self.most = max(self.most, psutil.Process().memory_info().rss)


def test_a_stream_that_is_over_leaves_its_memory(job):
    memory = Memory()
    with Session(job, memory=PLENTY) as session:
        for round_ in range(6):
            for seed in range(3):
                session.admit(replace(job, seed=seed, chunks=2), NullSink(), frames=24, telemetry=memory)
            session.run()
            if round_ == 2:
                before = memory.most
    assert memory.most <= 1.05 * before
