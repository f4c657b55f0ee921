"""Where every frame lies, for every kind of window and any prompts on the way, against plain lists."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.frames import FrameList, layouts

from runtime.rollout.buffers import Position
from runtime.rollout.recache import Past

pytestmark = pytest.mark.cpu

LAYOUTS = layouts(entry_width=1, layers=1)
TURNS = st.lists(st.sampled_from([None, None, "keep", "recache", "reset"]), min_size=1, max_size=20)
"""For each chunk, whether its prompt is new, and under which policy."""


class Slots:
    """A cache whose rows say which frame and token they were written for."""

    def __init__(self, layout):
        self.layout = layout
        self.rows = torch.full((layout.slots * layout.tokens_per_frame,), -1)

    def commit(self, number, position):
        """As `runtime.rollout.buffers.Buffers` does: rows of a fixed number."""
        layout = self.layout
        source, target = layout.token_indices(*position, frames=layout.chunk)
        tokens = layout.chunk * layout.tokens_per_frame
        assert len(source) == len(target) == (tokens if len(source) else 0)
        if len(source):
            assert 0 <= int(source.min()) <= int(source.max()) < tokens
            assert 0 <= int(target.min()) <= int(target.max()) < len(self.rows)
        self.rows[target] = number * tokens + source

    def attended(self, position):
        """The frames of the slots that are not empty, in the order of their positions."""
        index = self.layout.slot_index(*position)
        order = [slot for slot in index.argsort().tolist() if index[slot] >= 0]
        assert index[order].tolist() == list(range(len(order)))
        rows = self.rows.view(-1, self.layout.tokens_per_frame)[order]
        within = torch.arange(self.layout.tokens_per_frame)
        assert torch.equal(rows % self.layout.tokens_per_frame, within.expand_as(rows))
        return (rows[:, :1] // self.layout.tokens_per_frame).flatten().tolist()


@settings(deadline=None, max_examples=200)
@given(LAYOUTS, TURNS)
def test_whatever_prompts_do_a_chunk_attends_to_the_sink_and_the_newest_frames(layout, turns):
    window, slots, past, position = FrameList(layout), Slots(layout), Past(layout), Position()
    for number, policy in enumerate(turns):
        if number and policy:
            position, again = past.turn(policy, number, position)
            for place, kept in again:
                slots.commit(kept, place)
            if policy == "reset":
                window.recent = []
        assert slots.attended(position) == window.frames()
        first = len(window.frames())  # the chunk itself follows what it attends to
        assert layout.chunk_index(*position).tolist() == list(range(first, first + layout.chunk))
        assert first + layout.chunk <= layout.positions
        slots.commit(number, position)
        window.add(number)
        past.add(number, number)
        assert len(past.chunks) <= Past.capacity(layout)
        position = position.next()


@settings(deadline=None, max_examples=200)
@given(LAYOUTS, st.integers(0, 10**9), st.integers(0, 7))
def test_no_index_leaves_its_range_however_long_the_video(layout, chunk, ahead):
    position = Position(chunk, min(ahead, layout.sink))
    held, own = layout.slot_index(*position).tolist(), layout.chunk_index(*position).tolist()
    valid = [index for index in held if index >= 0]
    assert sorted(valid + own) == list(range(len(valid) + layout.chunk))
    assert len(valid) + layout.chunk <= layout.positions
    Slots(layout).commit(0, position)
