"""The rollout: seeds, batches, memory, and that nothing is read back inside a chunk."""

import pytest
import torch
from kit.measure import assert_close
from kit.tiny.engines import tiny_engine
from kit.tiny.passes import window_at
from torch.utils._python_dispatch import TorchDispatchMode

from runtime.engines.base import EagerEngine
from runtime.prompts.sources import FixedPrompts, PromptChange, PromptSchedule
from runtime.rollout.decoding import CodecDecoder, NoDecoder
from runtime.rollout.rollout import Rollout, rollout
from vmla.scheduler import Sampler
from vmla.transformer import StepInputs
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

CPU = torch.device("cpu")
PROMPT = "a red star bouncing on a navy background"
RENOISE = Sampler(kind="renoise", steps=3)


@pytest.fixture(scope="module")
def engine(checkpoint):
    opened = open_checkpoint(checkpoint)
    return EagerEngine(opened.transformer(), opened.text(), device=CPU, dtype=torch.float32)


def stream(engine, decoder, *, seeds, chunks, prompts=None, sampler=None):
    prompts = prompts or [PROMPT] * len(seeds)
    sampler = sampler or Sampler(kind="euler", steps=2)
    return rollout(engine, decoder, FixedPrompts(*prompts), sampler, seeds=seeds, chunks=chunks)


def latents_of(engine, *, seeds, chunks=5, **more):
    """[B, F, z, h, w] of a whole rollout."""
    made = stream(engine, NoDecoder(), seeds=seeds, chunks=chunks, **more)
    return torch.cat([chunk.frames for chunk in made], dim=1)


def test_a_seed_means_one_video_alone_or_in_a_batch(engine):
    alone = latents_of(engine, seeds=[7])
    assert torch.equal(alone, latents_of(engine, seeds=[7]))
    pair = latents_of(engine, seeds=[3, 7])
    assert_close(pair[1:], alone, rtol=0, atol=1e-4)
    assert (pair[0] - pair[1]).abs().max() > 0.1


def test_a_longer_video_begins_as_the_shorter_one(engine):
    longer, shorter = (latents_of(engine, seeds=[1], chunks=chunks) for chunks in (6, 4))
    assert torch.equal(longer[:, :12], shorter)


def test_the_prompt_and_the_few_step_sampler_matter(engine):
    few = Sampler(kind="renoise", steps=4)
    one = latents_of(engine, seeds=[1], sampler=few)
    other = latents_of(engine, seeds=[1], sampler=few, prompts=["a blue ring resting on a gray background"])
    assert (one - other).abs().max() > 1e-3
    assert (one - latents_of(engine, seeds=[1])).abs().max() > 1e-3


def test_the_rollout_is_the_method_step_by_step(engine):
    """Written out once more with nothing but the engine, and with a cache that only grows."""
    sampler, spec = Sampler(kind="euler", steps=3), engine.cache_spec
    text = engine.encode_prompt([PROMPT])
    kept: list[tuple[int, torch.Tensor]] = []
    videos = []
    from vmla.scheduler import keyed_noise

    for number in range(4):
        first = number * spec.chunk
        sinks = [(n, e) for n, e in kept if n < spec.sink]
        ring = [(n, e) for n, e in kept if n >= spec.sink][-spec.history :]
        window = sinks + ring
        gone = max(first - spec.slots, 0)
        places = [n if n < spec.sink else n - gone for n, _ in window]
        own = torch.arange(min(first, spec.slots), min(first, spec.slots) + spec.chunk)
        shape = (engine.config.num_layers, 1, 0, spec.entry_width)
        cache = torch.cat([torch.zeros(shape), *(e for _, e in window)], dim=2)
        position = torch.tensor(places, dtype=torch.int32), own.int()
        x = keyed_noise((1, 4, spec.chunk, 8, 8)[1:], seed=5, chunk=number, step=0)[None]
        for sigma, below in zip(sampler.sigmas()[:-1], sampler.sigmas()[1:], strict=True):
            t = torch.full((1, spec.chunk), float(sigma) * 1000)
            x = x + (below - sigma) * engine.step(StepInputs(x, t, text, cache, *position))[0]
        _, entries = engine.step(StepInputs(x, torch.zeros(1, spec.chunk), text, cache, *position))
        tokens = spec.tokens_per_frame
        kept += [(first + f, entries[:, :, f * tokens : (f + 1) * tokens]) for f in range(spec.chunk)]
        videos.append(x.transpose(1, 2))
    made = latents_of(engine, seeds=[5], chunks=4, sampler=sampler)
    assert_close(made, torch.cat(videos, dim=1), rtol=0, atol=1e-4)


class CountAllocations(TorchDispatchMode):
    """The largest tensor that any operator returns, and how often a value is read back."""

    def __init__(self):
        super().__init__()
        self.largest, self.reads = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.reads += function is torch.ops.aten._local_scalar_dense.default
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def test_no_tensor_grows_with_the_video(engine):
    sizes = []
    for chunks in (3, 12):
        with CountAllocations() as seen:
            for _ in stream(engine, NoDecoder(), seeds=[0], chunks=chunks):
                pass
        sizes.append(seen.largest)
    assert sizes[0] == sizes[1]


def test_a_pass_reads_no_value_back(engine):
    spec = engine.cache_spec
    text = engine.encode_prompt([PROMPT])
    latents = torch.randn(1, 4, spec.chunk, 8, 8)
    cache = torch.randn(spec.shape(1))
    with CountAllocations() as seen:
        timestep = torch.full((1, spec.chunk), 500.0)
        engine.step(StepInputs(latents, timestep, text, cache, *window_at(spec, 3)))
    assert seen.reads == 0


def test_decoding_chunk_by_chunk_equals_decoding_the_whole(engine, checkpoint):
    codec = open_checkpoint(checkpoint).codec()
    made = stream(engine, CodecDecoder(codec, CPU), seeds=[2], chunks=4)
    frames = torch.cat([chunk.frames for chunk in made], dim=1)
    whole, _ = codec.decode(latents_of(engine, seeds=[2], chunks=4).transpose(1, 2))
    assert_close(frames, whole, rtol=0, atol=1e-5)


def test_what_a_capture_computes_on_the_way_leaves_no_trace(monkeypatch):
    """On a GPU the passes run a few times before they are a graph: filling, full, at a change of prompt."""
    changes = [(0, "one", "keep"), (3, "another", "recache"), (6, "a third", "reset")]
    prompts = PromptSchedule(
        [PromptChange(chunk=n, prompts=(text,), policy=policy) for n, text, policy in changes]
    )

    def made():
        videos, latents = Rollout(tiny_engine(), prompts, RENOISE, seeds=[1]), []
        while videos.number < 9:
            latents.append(videos.denoise())
            videos.update_cache()
        return latents

    def run_before(function, *_):
        captures.append(function)
        for _ in range(2):
            function()
        return function

    wanted, captures = made(), []
    monkeypatch.setattr("runtime.rollout.graphs.captured", run_before)
    assert all(torch.equal(one, other) for one, other in zip(made(), wanted, strict=True))
    assert len(captures) == 4
