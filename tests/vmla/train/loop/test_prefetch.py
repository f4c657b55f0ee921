"""Batches drawn ahead are those that would be drawn in place, and nothing is left of the thread."""

import threading

import pytest
import torch

from plugins.errors import UserError
from vmla.train.loop.loop import train
from vmla.train.loop.prefetch import Prefetcher
from vmla.train.recipes.from_scratch import PRETRAINING_RECIPES
from vmla.train.stages.codec import CodecStage

pytestmark = pytest.mark.cpu

DEBUG = PRETRAINING_RECIPES["debug"]


def stage():
    return CodecStage(DEBUG.codec, DEBUG.codec_training)


def run(made, folder, **how):
    return train(made, folder, report=lambda line: None, **how)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batch")]


def test_weights_are_those_of_drawing_in_place_and_of_resuming(tmp_path, monkeypatch):
    whole = run(stage(), tmp_path / "ahead")
    assert run(stage(), tmp_path / "parts", stop_after=2) is None
    parts = run(stage(), tmp_path / "parts")
    with monkeypatch.context() as patched:
        patched.setattr(Prefetcher, "__enter__", lambda self: self)
        plain = run(stage(), tmp_path / "plain")
    for name, tensor in plain.items():
        assert torch.equal(whole[name], tensor), name
        assert torch.equal(parts[name], tensor), name
    assert not threads()


def test_the_next_batch_is_drawn_while_the_present_one_is_used():
    drawn, begun = [], threading.Event()

    def draw(number):
        drawn.append((number, threading.current_thread() is threading.main_thread()))
        if number == 7:
            begun.set()
        return number

    ahead = Prefetcher(draw)
    assert ahead.take(1) == 1
    assert drawn == [(1, True)]
    with ahead:
        assert [ahead.take(number) for number in (1, 4)] == [1, 4]
        assert begun.wait(60)  # nobody asked for it
        assert ahead.take(7) == 7
        assert len(threads()) == 1
    assert [number for number, _ in drawn].count(7) == 1
    assert not threads()


class Killed(BaseException):
    """No error that anyone catches."""


def test_an_error_in_drawing_arrives_with_its_message(tmp_path):
    made = stage()
    inner = made.draw

    def draw(step):
        if step == 2:
            raise UserError("shard-2 is cut short; encode again")
        return inner(step)

    made.prefetcher = Prefetcher(draw)
    with pytest.raises(UserError, match="shard-2 is cut short; encode again"):
        run(made, tmp_path)
    assert len((tmp_path / "codec.jsonl").read_text().splitlines()) == 2
    assert not threads()


def test_an_interruption_leaves_no_thread(tmp_path):
    made = stage()
    inner = made.loss

    def loss(step):
        found = inner(step)
        if step == 2:
            raise Killed
        return found

    made.loss = loss
    with pytest.raises(Killed):
        run(made, tmp_path)
    assert not threads()
