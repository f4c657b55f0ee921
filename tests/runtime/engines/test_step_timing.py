"""Steps are timed in turns, on inputs of a full window, and without a trace in the random numbers."""

from dataclasses import replace

import pytest
import torch

from runtime.engines.timing import step_timing
from runtime.engines.timing.step_timing import fewest_seconds, full_window, seconds_by_type
from vmla.config import named_config
from vmla.transformer import VideoMLA

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("threads, clock", [(1, "process_time"), (2, "perf_counter")])
def test_steps_take_turns_forwards_and_backwards_and_the_fewest_seconds_count(threads, clock, monkeypatch):
    now, calls, costs = [0.0], [], {"a": [9, 3, 4], "b": [9, 5, 2]}

    def step(name):
        def run():
            calls.append(name)
            now[0] += costs[name].pop(0)

        return run

    monkeypatch.setattr(step_timing.torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(step_timing.time, "process_time", lambda: 0.0)
    monkeypatch.setattr(step_timing.time, "perf_counter", lambda: 10 * now[0])  # of the wall
    monkeypatch.setattr(step_timing.time, clock, lambda: now[0])
    assert fewest_seconds({name: step(name) for name in costs}, budget=1.0) == {"a": 3, "b": 2}
    assert "".join(calls) == "ab" + "abba"


@pytest.mark.parametrize("layout", ["mla", "mha"])
@pytest.mark.parametrize("first_chunk", [0, 1])
def test_no_slot_is_empty_and_the_step_takes_the_inputs(layout, first_chunk):
    config = replace(named_config("debug", layout=layout), first_chunk=first_chunk)
    inputs = full_window(config, torch.float32)
    assert (inputs.slot_index >= 0).all()
    with torch.no_grad():
        model = VideoMLA(config)
        velocity, _ = model(*inputs, full=True)
        masked, _ = model(*inputs)
    assert velocity.shape == inputs.latents.shape
    torch.testing.assert_close(velocity, masked)


def test_types_are_timed_without_drawing_from_the_caller_s_random_numbers():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    seconds = seconds_by_type(named_config("debug"), (torch.float32, torch.bfloat16))
    assert torch.equal(before, torch.get_rng_state())
    assert set(seconds) == {torch.float32, torch.bfloat16} and min(seconds.values()) > 0
