"""The cache's bookkeeping, for every kind of window, against a plain list of frames."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.frames import FrameList, layouts
from kit.measure import assert_close
from kit.models import draw

from vmla.cache import CacheLayout
from vmla.config import recipe

pytestmark = pytest.mark.cpu

LAYOUTS = layouts(entry_width=2, layers=2)
NUMBERS = st.integers(0, 40)


def of_entries(layout, number, batch=1):
    """Entries of a chunk [L, B, S, E] that say their frame, their token and their layer."""
    frames = torch.arange(number * layout.chunk, (number + 1) * layout.chunk)
    said = frames[:, None] * 10 + torch.arange(layout.tokens_per_frame)
    layers = 1000 * torch.arange(layout.layers)[:, None, None, None]
    return (said.flatten()[None, None, :, None] + layers).expand(-1, batch, -1, layout.entry_width).double()


@settings(deadline=None, max_examples=300)
@given(LAYOUTS, NUMBERS)
def test_slots_hold_the_sink_and_the_newest_frames(layout, chunks):
    window = FrameList(layout)
    for number in range(chunks):
        window.add(number)
    held = layout.frame_in_slot(chunks)
    assert sorted(frame for frame in held if frame >= 0) == window.frames()
    assert len(held) == layout.slots
    made = min(layout.sink, chunks * layout.chunk)
    assert held[:made] == list(range(made))


@settings(deadline=None, max_examples=300)
@given(LAYOUTS, NUMBERS)
def test_positions_are_distinct_in_the_order_of_time_and_bounded(layout, number):
    slots, chunk = layout.slot_index(number), layout.chunk_index(number)
    assert slots.dtype == chunk.dtype == torch.int32
    held = list(zip(layout.frame_in_slot(number), slots.tolist(), strict=True))
    assert all((frame < 0) == (at < 0) for frame, at in held)
    positions = [at for frame, at in sorted(held) if frame >= 0] + chunk.tolist()
    assert positions == list(range(len(positions)))
    assert max(positions) < layout.positions


@settings(deadline=None, max_examples=300)
@given(LAYOUTS, NUMBERS)
def test_positions_are_absolute_until_the_window_is_full(layout, number):
    if number * layout.chunk <= layout.slots:
        held = layout.frame_in_slot(number)
        assert layout.slot_index(number).tolist() == held
        assert layout.chunk_index(number)[0] == number * layout.chunk


@settings(deadline=None, max_examples=200)
@given(LAYOUTS, st.integers(0, 25))
def test_committed_entries_are_those_of_the_frames_that_the_slots_claim(layout, chunks):
    cache = torch.full(layout.shape(), float("nan")).double()
    for number in range(chunks):
        cache = layout.commit(cache, of_entries(layout, number), number)
    slots = cache.unflatten(2, (layout.slots, layout.tokens_per_frame)) if layout.slots else cache
    for slot, frame in enumerate(layout.frame_in_slot(chunks)):
        number, offset = divmod(frame, layout.chunk)
        whole = of_entries(layout, number).unflatten(2, (layout.chunk, -1))
        if frame < 0:
            assert slots[:, :, slot].isnan().all()
        else:
            assert torch.equal(slots[:, :, slot], whole[:, :, offset])


@settings(deadline=None, max_examples=200)
@given(LAYOUTS, NUMBERS)
def test_both_commits_agree_and_one_leaves_its_cache_alone(layout, number):
    cache, entries = draw(*layout.shape(2), seed=1), draw(2, 2, layout.chunk * layout.tokens_per_frame, 2)
    before, written = cache.clone(), cache.clone()
    layout.commit_(written, entries, number)
    assert torch.equal(layout.commit(cache, entries, number), written)
    assert torch.equal(cache, before)
    kept, slots = layout.commits(number)
    assert len(set(slots)) == len(slots) == len(kept)
    rows = torch.ones(layout.slots, dtype=torch.bool)
    rows[slots] = False
    untouched = rows.repeat_interleave(layout.tokens_per_frame)
    assert torch.equal(written[:, :, untouched], before[:, :, untouched])


@settings(deadline=None, max_examples=100)
@given(LAYOUTS, st.integers(0, 3))
def test_bytes_are_those_of_the_tensor(layout, batch):
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        cache = layout.allocate(batch, dtype=dtype)
        assert cache.shape == layout.shape(batch)
        assert layout.bytes(batch, element_size=dtype.itemsize) == cache.nbytes
    tokens = batch * layout.slots * layout.tokens_per_frame
    assert layout.bytes(batch) == layout.bytes_per_token() * tokens


def test_the_second_commit_of_a_chunk_replaces_the_first():
    """A chunk made again, as after a prompt switch, takes the same slots."""
    layout = CacheLayout(sink=1, history=4, chunk=3, tokens_per_frame=2, entry_width=2, layers=2)
    cache = layout.allocate(1, dtype=torch.float64)
    for number in (0, 1, 2, 2):
        layout.commit_(cache, of_entries(layout, number), number)
    once = layout.allocate(1, dtype=torch.float64)
    for number in (0, 1, 2):
        layout.commit_(once, of_entries(layout, number), number)
    assert torch.equal(cache, once)


def test_gradients_reach_what_was_committed_and_not_what_was_replaced():
    layout = CacheLayout(sink=1, history=2, chunk=2, tokens_per_frame=1, entry_width=2, layers=1)
    entries = [draw(1, 1, 2, 2, seed=number).requires_grad_(True) for number in range(3)]
    cache = layout.allocate(1, dtype=torch.float32)
    for number, chunk in enumerate(entries):
        cache = layout.commit(cache, chunk, number)
    cache.sum().backward()
    reached = torch.cat([chunk.grad[0, 0, :, 0] for chunk in entries])
    assert_close(reached, torch.tensor([1.0, 0, 0, 0, 1, 1]), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["debug", "sprites", "wan-1.3b"])
@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_a_layout_is_that_of_its_configuration(name, layout):
    config = recipe(name, layout=layout)
    cache = CacheLayout.of(config)
    tokens = (config.sink + config.history) * config.tokens_per_frame
    assert cache.shape(3) == (config.num_layers, 3, tokens, config.entry_width)
    assert cache.chunk == config.chunk
