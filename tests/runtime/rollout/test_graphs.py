"""One set of CUDA graphs serves all videos of an engine: stand-ins are counted, and give the same."""

import gc

import pytest
import torch
from kit.tiny.engines import tiny_engine

from runtime.device.cuda_graphs import Replay
from runtime.prompts.sources import PromptChange, PromptSchedule
from runtime.rollout.graphs import ChunkGraphs
from runtime.rollout.rollout import ChunkPasses, Rollout
from vmla.scheduler import Sampler

pytestmark = pytest.mark.cpu

SAMPLERS = {
    "euler": Sampler(kind="euler", steps=2),
    "renoise": Sampler(kind="renoise", steps=3),
    "guided": Sampler(kind="euler", steps=2, guidance_scale=3.0, negative_prompt="blurred"),
    "opening": Sampler(
        kind="euler",
        steps=2,
        negative_prompt="blurred",
        opening=Sampler(kind="renoise", steps=3, guidance_scale=2.0),
    ),
}
WINDOWS = [{}, {"sink": 3, "history": 0}, {"sink": 2, "history": 6, "chunk": 3, "first_chunk": 1}]


class Graph:
    """Stands for a captured graph: reads and writes only the memory that it was captured with."""

    made = 0

    def __init__(self, function):
        Graph.made += 1
        for _ in range(2):  # as before a capture
            function()
        self.replay = function


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    Graph.made = 0
    monkeypatch.setattr("runtime.rollout.graphs.captured", lambda function, *_: Replay(Graph(function)))


def prompts(number):
    policies = ["reset", "recache", "keep"]
    changes = [(0, "one", "keep"), (4 + number, "another of these", policies[number % 3])]
    return PromptSchedule(
        [PromptChange(chunk=n, prompts=(text + "!" * number,), policy=policy) for n, text, policy in changes]
    )


def advance(video):
    latents = video.denoise()
    video.update_cache()
    return latents


def alone(engine, sampler, number, chunks=9):
    video = Rollout(engine, prompts(number), sampler, seeds=[number], graphs=False)
    return [advance(video) for _ in range(chunks)]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_videos_that_take_turns_share_their_graphs_and_are_what_each_is_alone(sampler, window):
    engine, captures = tiny_engine(**window), {}
    for count in (2, 5):
        Graph.made, shared = 0, ChunkGraphs(ChunkPasses(engine), sampler)
        videos = [Rollout(engine, prompts(n), sampler, seeds=[n], graphs=shared) for n in range(count)]
        made = [[] for _ in videos]
        for _ in range(9):
            for video, latents in zip(videos, made, strict=True):
                latents.append(video.denoise())
            for video in videos:  # others have denoised in between
                video.update_cache()
        for number, latents in enumerate(made):
            for got, want in zip(latents, alone(engine, sampler, number), strict=True):
                assert torch.equal(got, want)
        captures[count] = Graph.made
    if sampler.opening is None:
        assert captures[5] == captures[2] <= 8  # two of each length, filling and full
    else:  # more videos change their prompts in more kinds of window, each of which may open
        assert captures[2] <= captures[5] <= 16


def test_one_video_runs_in_place_and_moves_out_when_another_comes():
    engine, sampler = tiny_engine(), SAMPLERS["renoise"]
    shared = ChunkGraphs(ChunkPasses(engine), sampler)
    first = Rollout(engine, prompts(0), sampler, seeds=[0], graphs=shared)
    places = {first.buffers.cache.data_ptr()}
    made = [advance(first) for _ in range(4)]
    assert {first.buffers.cache.data_ptr()} == places
    second = Rollout(engine, prompts(1), sampler, seeds=[1], graphs=shared)
    other = [advance(second) for _ in range(9)]
    assert first.buffers.cache.data_ptr() not in places | {second.buffers.cache.data_ptr()}
    made += [advance(first) for _ in range(5)]
    for got, want in ((made, alone(engine, sampler, 0)), (other, alone(engine, sampler, 1))):
        assert all(torch.equal(one, two) for one, two in zip(got, want, strict=True))


def test_the_graphs_of_a_video_that_has_ended_serve_the_next():
    engine, sampler = tiny_engine(), SAMPLERS["euler"]
    shared = ChunkGraphs(ChunkPasses(engine), sampler)
    first = Rollout(engine, prompts(0), sampler, seeds=[0], graphs=shared)
    for _ in range(9):
        advance(first)
    before = Graph.made
    del first
    gc.collect()
    second = Rollout(engine, prompts(2), sampler, seeds=[2], graphs=shared)
    made = [advance(second) for _ in range(9)]
    assert Graph.made == before
    assert all(torch.equal(one, two) for one, two in zip(made, alone(engine, sampler, 2), strict=True))


def test_windows_that_an_engine_computes_apart_have_graphs_apart():
    """An engine that takes held slots alone has a computation for each number of them."""
    engine, sampler = tiny_engine(), SAMPLERS["euler"]
    engine.computation = lambda held: held
    shared = ChunkGraphs(ChunkPasses(engine), sampler)
    first, second = (Rollout(engine, prompts(n), sampler, seeds=[n], graphs=shared) for n in range(2))
    made = [advance(first) for _ in range(4)]
    assert Graph.made == 2  # a window that fills comes once, a full one again and again
    made += [advance(first) for _ in range(5)]
    other = [advance(second) for _ in range(9)]
    for got, want in ((made, alone(engine, sampler, 0)), (other, alone(engine, sampler, 1))):
        assert all(torch.equal(one, two) for one, two in zip(got, want, strict=True))
