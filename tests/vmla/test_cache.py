"""The cache's bookkeeping, for every kind of window, against a plain list of frames."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.measure import assert_close
from kit.tiny.frames import FrameList, frames_of, specs
from kit.tiny.models import draw

from vmla.cache import CacheSpec, ChunkLengths
from vmla.config import named_config

pytestmark = pytest.mark.cpu

LAYOUTS = specs(entry_width=2, layers=2)
NUMBERS = st.integers(0, 40)


def of_entries(spec, number, batch=1):
    """Entries of a chunk [L, B, S, E] that say their frame, their token and their layer."""
    frames = torch.tensor(frames_of(spec, number))
    said = frames[:, None] * 10 + torch.arange(spec.tokens_per_frame)
    layers = 1000 * torch.arange(spec.layers)[:, None, None, None]
    return (said.flatten()[None, None, :, None] + layers).expand(-1, batch, -1, spec.entry_width).double()


@settings(deadline=None, max_examples=300)
@given(LAYOUTS, NUMBERS)
def test_slots_hold_the_sink_and_the_newest_frames(spec, chunks):
    window, start = FrameList(spec), frames_of(spec, chunks)[0]
    for number in range(chunks):
        window.add(number)
    held = spec.frame_in_slot(start)
    assert sorted(frame for frame in held if frame >= 0) == window.frames()
    assert len(held) == spec.slots
    made = min(spec.sink, start)
    assert held[:made] == list(range(made))


@settings(deadline=None, max_examples=300)
@given(LAYOUTS, st.integers(0, 120), st.data())
def test_positions_are_distinct_in_the_order_of_time_and_bounded(spec, frame, data):
    frames = data.draw(st.integers(1, spec.chunk))
    slots, chunk = spec.slot_index(frame), spec.chunk_index(frame, frames)
    assert slots.dtype == chunk.dtype == torch.int32
    held = list(zip(spec.frame_in_slot(frame), slots.tolist(), strict=True))
    assert all((frame < 0) == (at < 0) for frame, at in held)
    positions = [at for frame, at in sorted(held) if frame >= 0] + chunk.tolist()
    assert positions == list(range(len(positions)))
    assert max(positions) < spec.positions


@settings(deadline=None, max_examples=300)
@given(LAYOUTS, st.integers(0, 16))
def test_positions_are_absolute_until_the_window_is_full(spec, frame):
    if frame <= spec.slots:
        assert spec.evicted(frame) == 0
        assert spec.slot_index(frame).tolist() == spec.frame_in_slot(frame)
        assert spec.chunk_index(frame, 1).tolist() == [frame]


@settings(deadline=None, max_examples=200)
@given(LAYOUTS, st.integers(0, 25))
def test_committed_entries_are_those_of_the_frames_that_the_slots_claim(spec, chunks):
    cache = torch.full(spec.shape(), float("nan")).double()
    for number in range(chunks):
        cache = spec.commit(cache, of_entries(spec, number), frames_of(spec, number)[0])
    slots = cache.unflatten(2, (spec.slots, spec.tokens_per_frame)) if spec.slots else cache
    frames = [frame for number in range(chunks) for frame in frames_of(spec, number)]
    said = [of_entries(spec, number) for number in range(chunks)]
    whole = torch.cat(said, dim=2).unflatten(2, (len(frames), -1)) if chunks else None
    for slot, frame in enumerate(spec.frame_in_slot(frames_of(spec, chunks)[0])):
        if frame < 0:
            assert slots[:, :, slot].isnan().all()
        else:
            assert torch.equal(slots[:, :, slot], whole[:, :, frame])


@settings(deadline=None, max_examples=200)
@given(LAYOUTS, st.integers(0, 120), st.data())
def test_both_commits_agree_and_one_leaves_its_cache_alone(spec, frame, data):
    frames = data.draw(st.integers(1, spec.chunk))
    cache, entries = draw(*spec.shape(2), seed=1), draw(2, 2, frames * spec.tokens_per_frame, 2)
    before, written = cache.clone(), cache.clone()
    spec.commit_(written, entries, frame)
    assert torch.equal(spec.commit(cache, entries, frame), written)
    assert torch.equal(cache, before)
    kept, slots = spec.commits(frame, frames)
    assert len(set(slots)) == len(slots) == len(kept)
    rows = torch.ones(spec.slots, dtype=torch.bool)
    rows[slots] = False
    untouched = rows.repeat_interleave(spec.tokens_per_frame)
    assert torch.equal(written[:, :, untouched], before[:, :, untouched])


@settings(deadline=None, max_examples=100)
@given(LAYOUTS, st.integers(0, 3))
def test_bytes_are_those_of_the_tensor(spec, batch):
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        cache = spec.allocate(batch, dtype=dtype)
        assert cache.shape == spec.shape(batch)
        assert spec.bytes(batch, element_size=dtype.itemsize) == cache.nbytes
    tokens = batch * spec.slots * spec.tokens_per_frame
    assert spec.bytes(batch) == spec.bytes_per_token() * tokens


def test_the_second_commit_of_a_chunk_replaces_the_first():
    """A chunk made again, as after a prompt switch, takes the same slots."""
    spec = CacheSpec(sink=1, history=4, chunk=3, tokens_per_frame=2, entry_width=2, layers=2)
    cache = spec.allocate(1, dtype=torch.float64)
    for number in (0, 1, 2, 2):
        spec.commit_(cache, of_entries(spec, number), 3 * number)
    once = spec.allocate(1, dtype=torch.float64)
    for number in (0, 1, 2):
        spec.commit_(once, of_entries(spec, number), 3 * number)
    assert torch.equal(cache, once)


def test_gradients_reach_what_was_committed_and_not_what_was_replaced():
    spec = CacheSpec(sink=1, history=2, chunk=2, tokens_per_frame=1, entry_width=2, layers=1)
    entries = [draw(1, 1, 2, 2, seed=number).requires_grad_(True) for number in range(3)]
    cache = spec.allocate(1, dtype=torch.float32)
    for number, chunk in enumerate(entries):
        cache = spec.commit(cache, chunk, 2 * number)
    cache.sum().backward()
    reached = torch.cat([chunk.grad[0, 0, :, 0] for chunk in entries])
    assert_close(reached, torch.tensor([1.0, 0, 0, 0, 1, 1]), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["debug", "sprites", "wan-1.3b"])
@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_a_layout_is_that_of_its_configuration(name, layout):
    config = named_config(name, layout=layout)
    cache = CacheSpec.of(config)
    tokens = (config.sink + config.history) * config.tokens_per_frame
    assert cache.shape(3) == (config.num_layers, 3, tokens, config.entry_width)
    assert cache.chunks == ChunkLengths(first=config.chunk, following=config.chunk)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 5), st.integers(1, 5), st.lists(st.integers(0, 12), min_size=1, max_size=5))
def test_chunks_divide_the_frames_of_a_video_among_them(first, following, numbers):
    chunks = ChunkLengths(first=min(first, following), following=following)
    at = [number for number in range(13) for _ in range(chunks.length(number))]
    assert [chunks.number_of(frame) for frame in range(len(at))] == at
    assert [chunks.start(number) for number in range(13)] == [at.index(number) for number in range(13)]
    assert chunks.count(0) == 0
    assert [chunks.count(frame + 1) for frame in range(len(at))] == [number + 1 for number in at]
    clip = torch.arange(len(at))[chunks.frames_of(numbers)]
    parts = chunks.split(clip, numbers, dim=0)
    assert [{at[frame] for frame in part.tolist()} for part in parts] == [{number} for number in numbers]
    assert [len(part) for part in parts] == [chunks.length(number) for number in numbers]
