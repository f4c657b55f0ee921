"""Where every frame lies, for every kind of window and any prompts on the way, against plain lists."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.tiny.frames import FrameList, frames_of, specs

from runtime.rollout.recache import LatentHistory

pytestmark = pytest.mark.cpu

LAYOUTS = specs(entry_width=1, layers=1)
TURNS = st.lists(st.sampled_from([None, None, "keep", "recache", "reset"]), min_size=1, max_size=20)
"""For each chunk, whether its prompt is new, and under which policy."""


class Slots:
    """A cache whose rows say which frame and token they were written for."""

    def __init__(self, spec):
        self.cache_spec = spec
        self.rows = torch.full((spec.slots * spec.tokens_per_frame,), -1)

    def commit(self, made, frame):
        """As `runtime.rollout.buffers.Buffers`, the frames `made` from `frame` on: a fixed number of rows."""
        spec = self.cache_spec
        source, target = spec.token_indices(frame, len(made), padded=True)
        tokens = len(made) * spec.tokens_per_frame
        assert len(source) == len(target) == (tokens if len(source) else 0)
        if len(source):
            assert 0 <= int(source.min()) <= int(source.max()) < tokens
            assert 0 <= int(target.min()) <= int(target.max()) < len(self.rows)
        self.rows[target] = made[0] * spec.tokens_per_frame + source

    def attended(self, frame):
        """The frames of the slots that are not empty, in the order of their positions."""
        index = self.cache_spec.slot_index(frame)
        order = [slot for slot in index.argsort().tolist() if index[slot] >= 0]
        assert index[order].tolist() == list(range(len(order)))
        rows = self.rows.view(-1, self.cache_spec.tokens_per_frame)[order]
        within = torch.arange(self.cache_spec.tokens_per_frame)
        assert torch.equal(rows % self.cache_spec.tokens_per_frame, within.expand_as(rows))
        return (rows[:, :1] // self.cache_spec.tokens_per_frame).flatten().tolist()


@settings(deadline=None, max_examples=200)
@given(LAYOUTS, TURNS)
def test_whatever_prompts_do_a_chunk_attends_to_the_sink_and_the_newest_frames(spec, turns):
    window, slots, past, frame = FrameList(spec), Slots(spec), LatentHistory(spec), 0
    for number, policy in enumerate(turns):
        own = frames_of(spec, number)
        if number and policy:
            frame, again = past.change_prompt(policy, number, frame)
            for place, kept in again:
                slots.commit(kept, place)
            if policy == "reset":
                window.recent = []
        assert slots.attended(frame) == window.frames()
        first = len(window.frames())  # the chunk itself follows what it attends to
        assert spec.chunk_index(frame, len(own)).tolist() == list(range(first, first + len(own)))
        assert first + len(own) <= spec.positions
        slots.commit(own, frame)
        window.add(number)
        past.add(number, own)
        assert len(past.chunks) <= LatentHistory.capacity(spec)
        frame += len(own)


@settings(deadline=None, max_examples=200)
@given(LAYOUTS, st.integers(0, 10**9), st.data())
def test_no_index_leaves_its_range_however_long_the_video(spec, frame, data):
    frames = data.draw(st.integers(1, spec.chunk))
    held, own = spec.slot_index(frame).tolist(), spec.chunk_index(frame, frames).tolist()
    valid = [index for index in held if index >= 0]
    assert sorted(valid + own) == list(range(len(valid) + frames))
    assert len(valid) + frames <= spec.positions
    Slots(spec).commit(range(frames), frame)
