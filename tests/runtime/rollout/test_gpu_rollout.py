"""The rollout on a GPU. One command: python -m pytest tests/runtime -m gpu"""

import warnings

import pytest
import torch
from kit.tiny.engines import tiny_engine

from runtime.prompts.sources import PromptChange, PromptSchedule
from runtime.resume.state import Snapshot
from runtime.rollout import graphs
from runtime.rollout.rollout import Rollout
from vmla.scheduler import Sampler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

RENOISE = Sampler(kind="renoise", steps=3)


def prompts():
    changes = [(0, "one", "keep"), (3, "another", "recache"), (5, "a third", "reset")]
    return PromptSchedule(
        [PromptChange(chunk=n, prompts=(text,), policy=policy) for n, text, policy in changes]
    )


def latents_of(videos, chunks):
    made = []
    while videos.number < chunks:
        made.append(videos.denoise())
        videos.update_cache()
    return made


@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_replayed_graphs_give_what_single_launches_give(monkeypatch, layout):
    engine = tiny_engine("cuda", layout=layout)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a capture that fails says so
        videos = Rollout(engine, prompts(), RENOISE, seeds=[1])
        replayed = latents_of(videos, 8)
    # Seven times noise, positions and places, steps and clean pass; again for the window of `recache`. The
    # first chunk is launched one by one.
    assert videos.launches >= 7 * 7
    monkeypatch.setattr(graphs, "captured", lambda function, *_: function)
    launched = latents_of(Rollout(engine, prompts(), RENOISE, seeds=[1]), 8)
    assert all(torch.equal(one, other) for one, other in zip(replayed, launched, strict=True))


def test_a_snapshot_goes_on_to_the_same_latents():
    engine = tiny_engine("cuda")
    first = Rollout(engine, prompts(), RENOISE, seeds=[1])
    latents_of(first, 4)
    snapshot = Snapshot.of(first)
    wanted = latents_of(first, 7)
    second = Rollout(engine, prompts(), RENOISE, seeds=[1])
    torch.cuda.synchronize()
    snapshot.restore(second)
    assert all(torch.equal(a, b) for a, b in zip(latents_of(second, 7), wanted, strict=True))


def test_nothing_waits_for_the_device_inside_a_chunk():
    videos = Rollout(tiny_engine("cuda"), prompts(), RENOISE, seeds=[1])
    latents_of(videos, 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        latents_of(videos, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert videos.number == 3


@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_a_start_gives_the_chunks_that_follow_it(layout):
    engine = tiny_engine("cuda", layout=layout)

    def videos(start=()):
        return Rollout(engine, prompts(), RENOISE, seeds=[3], start=start)

    whole = latents_of(videos(), 7)
    again = latents_of(videos(whole[:2]), 7)
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))
