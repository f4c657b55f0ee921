"""One worker of a pool, without a cluster: what it makes, what it goes on with, and what it leaves alone."""

import threading
from functools import partial

import pytest

from runtime.cluster.maker import VideoMaker
from runtime.prompts.videos_file import VideoEntry
from runtime.resume.sidecar import describe_video, write_begun
from runtime.session.generate import make_videos, orders_of
from runtime.session.replay import new
from runtime.telemetry.events import NoTelemetry

pytestmark = pytest.mark.cpu
STAR = VideoEntry(name="star", prompt="a red star", seed=3)


def order(prompt, *, checkpoint, chunks=8):
    return new(prompt, str(checkpoint), scale=None, chunks=chunks, threads=1)


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory):
    """The bytes of the same video, made without a pool."""
    output = tmp_path_factory.mktemp("alone") / "star.mp4"
    orders = orders_of([STAR], order(STAR.prompt, checkpoint=checkpoint))
    make_videos({output: orders["star"]}, telemetry=lambda _: NoTelemetry(), stop=threading.Event())
    return output.read_bytes()


def maker(checkpoint, folder, *, overwrite=False, **changed):
    return VideoMaker(
        partial(order, checkpoint=checkpoint, **changed), folder, save_every=0.0, overwrite=overwrite
    )


class StopsAfter:
    """A request to stop that comes while the third chunk is made."""

    def __init__(self, looks):
        self.left = looks

    def is_set(self):
        self.left -= 1
        return self.left < 0


def test_a_worker_makes_goes_on_with_and_leaves_what_is_done(checkpoint, tmp_path, alone):
    first, output = maker(checkpoint, tmp_path), tmp_path / "star.mp4"
    first._stop = StopsAfter(3)
    stopped = first.make(STAR)
    assert (stopped.complete, stopped.failure) == (False, None)
    assert 0 < stopped.frames < 96
    second = maker(checkpoint, tmp_path)
    rest = second.make(STAR)
    assert (rest.complete, rest.failure) == (True, None)
    assert rest.made < rest.frames
    assert output.read_bytes() == alone
    written = output.stat().st_mtime_ns
    again = second.make(STAR)
    assert (again.complete, again.made, again.frames) == (True, 0, rest.frames)
    assert output.stat().st_mtime_ns == written
    other = second.make(VideoEntry(name="star", prompt="a blue ring", seed=3))
    assert "prompt" in other.failure
    assert output.read_bytes() == alone


def test_a_worker_begins_anew_what_another_left_without_a_state_and_leaves_the_rest(
    checkpoint, tmp_path, alone
):
    worker, output = maker(checkpoint, tmp_path), tmp_path / "star.mp4"
    output.write_bytes(alone[:5_000])
    assert "exists already" in worker.make(STAR).failure
    assert output.read_bytes() == alone[:5_000]
    asked = order(STAR.prompt, checkpoint=checkpoint)
    begun = describe_video(asked.job, frames=asked.frames, scale=asked.scale)
    write_begun(output, {**begun, "seed": 3})
    assert "another prompt" in worker.make(VideoEntry(name="star", prompt="a blue ring", seed=3)).failure
    assert output.read_bytes() == alone[:5_000]
    assert worker.make(STAR).complete
    assert output.read_bytes() == alone


def test_a_worker_that_overwrites_begins_anew(checkpoint, tmp_path, alone):
    assert maker(checkpoint, tmp_path).make(STAR).complete
    again = maker(checkpoint, tmp_path, overwrite=True).make(STAR)
    assert (again.complete, again.made) == (True, again.frames)
    assert (tmp_path / "star.mp4").read_bytes() == alone
