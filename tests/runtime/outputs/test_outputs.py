"""Frames come back from every sink as they went in, also while it is still being written."""

import threading
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from runtime.outputs import NullSink
from runtime.outputs.mp4 import Mp4Sink
from runtime.outputs.mp4_fragment import encode
from runtime.outputs.png import PngSink
from runtime.outputs.writer import FrameWriter

pytestmark = pytest.mark.cpu


def draw(count, seed=0, size=64):
    """Smooth moving pictures: H.264 is no judge of noise."""
    rng = np.random.default_rng(seed)
    phases = rng.uniform(0, 6, 3)
    y, x, t = np.mgrid[0:size, 0:size, 0:count].transpose(0, 3, 1, 2)
    waves = [np.sin(x / 9 + t / 7 + p) * np.cos(y / 11 - t / 9 + p) for p in phases]
    return ((np.stack(waves, axis=-1) * 0.4 + 0.5) * 255).astype(np.uint8)


def read(path):
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def error(a, b):
    return np.abs(a.astype(float) - b.astype(float)).mean()


def test_an_mp4_gives_back_its_frames(tmp_path):
    frames, path = draw(40), tmp_path / "a.mp4"
    sink = Mp4Sink(path, frames_per_second=16)
    for first in range(0, 40, 12):
        sink.write(frames[first : first + 12])
    sink.close()
    again = read(path)
    assert again.shape == frames.shape
    assert error(again, frames) < 4
    assert error(again[5], frames[5]) < error(again[5], frames[15])
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert (stream.pix_fmt, stream.average_rate) == ("yuv420p", 16)


def test_an_mp4_plays_before_it_is_closed(tmp_path):
    frames, path = draw(48), tmp_path / "a.mp4"
    sink = Mp4Sink(path, frames_per_second=16)
    sink.write(frames[:36])
    early = path.read_bytes()
    sink.write(frames[36:])
    sink.close()
    (tmp_path / "early.mp4").write_bytes(early)
    played = read(tmp_path / "early.mp4")
    assert len(played) >= 16
    assert error(played, frames[: len(played)]) < 4


PURE = np.array([
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 255, 255), (255, 0, 255), (255, 255, 0),
    (255, 255, 255), (0, 0, 0), (128, 128, 128),
], np.uint8)  # fmt: skip


@pytest.mark.parametrize(("height", "code"), [(64, 6), (480, 6), (720, 1)])
def test_colours_come_back_by_the_matrix_that_the_file_names(tmp_path, height, code):
    frames = np.broadcast_to(PURE[:, None, None], (len(PURE), height, 64, 3))
    sink = Mp4Sink(tmp_path / "a.mp4", frames_per_second=16)
    sink.write(np.ascontiguousarray(frames))
    sink.close()
    assert np.abs(read(tmp_path / "a.mp4").astype(int) - frames).max() <= 3
    with av.open(str(tmp_path / "a.mp4")) as file:
        named = file.streams.video[0].codec_context
        assert (named.color_range, named.colorspace, named.color_primaries, named.color_trc) == (
            1, code, code, code,
        )  # fmt: skip


def test_a_file_that_was_begun_without_a_named_matrix_goes_on_without(tmp_path):
    frames, path = draw(24), tmp_path / "a.mp4"
    header, fragments = encode(frames[:12], rate=16, scale=1, matrix=0)
    path.write_bytes(header + fragments)
    crc = zlib.crc32(header)
    former = {"frames": 12, "bytes": len(header + fragments), "fragments": 1, "header": len(header)}
    sink = Mp4Sink(path, frames_per_second=16, after={**former, "header_crc32": crc})
    sink.write(frames[12:])
    sink.close()
    assert sink.mark()["matrix"] == 0
    with av.open(str(path)) as file:
        assert file.streams.video[0].codec_context.colorspace == 2  # unspecified
    assert error(read(path), frames) < 4


def test_frames_are_enlarged(tmp_path):
    sink = Mp4Sink(tmp_path / "a.mp4", frames_per_second=16, scale=3)
    sink.write(draw(5))
    sink.close()
    assert read(tmp_path / "a.mp4").shape == (5, 192, 192, 3)


def test_nothing_written_leaves_no_file(tmp_path):
    Mp4Sink(tmp_path / "a.mp4", frames_per_second=16).close()
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_exact(tmp_path):
    frames = draw(14)
    sink = PngSink(tmp_path / "p")
    sink.write(frames[:12])
    sink.write(frames[12:])
    names = [f"{n:06d}.png" for n in range(14)]
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == names
    again = np.stack([np.array(Image.open(tmp_path / "p" / name)) for name in names])
    assert np.array_equal(again, frames)


def test_an_mp4_that_is_cut_while_a_piece_is_appended_plays_up_to_it(tmp_path):
    """A piece's first eight bytes are written last: whatever of the rest is there is passed over."""
    sink = Mp4Sink(tmp_path / "a.mp4", frames_per_second=16)
    sink.write(draw(12))
    before = sink.mark()["bytes"]
    sink.write(draw(12, seed=1))
    sink.close()
    whole = (tmp_path / "a.mp4").read_bytes()
    for share in (0.0, 0.1, 0.5, 0.99, 1.0):
        rest = whole[before + 8 :]
        (tmp_path / "cut.mp4").write_bytes(whole[:before] + bytes(8) + rest[: int(share * len(rest))])
        assert len(read(tmp_path / "cut.mp4")) == 12
    assert len(read(tmp_path / "a.mp4")) == 24


def test_an_mp4_goes_on_to_the_same_bytes(tmp_path):
    frames, marks = draw(41), []
    sink = Mp4Sink(tmp_path / "a.mp4", frames_per_second=16)
    for first in range(0, 41, 12):
        marks.append(sink.mark())
        sink.write(frames[first : first + 12])
    sink.close()
    whole = (tmp_path / "a.mp4").read_bytes()
    for mark in marks:
        (tmp_path / "b.mp4").write_bytes(whole[: mark["bytes"] + 999])
        sink = Mp4Sink(tmp_path / "b.mp4", frames_per_second=16, after=mark)
        for first in range(mark["frames"], 41, 12):
            sink.write(frames[first : first + 12])
        sink.close()
        assert (tmp_path / "b.mp4").read_bytes() == whole
    times = [frame.pts * frame.time_base for frame in frames_with_times(tmp_path / "b.mp4")]
    assert times == [Fraction(n, 16) for n in range(41)]


def frames_with_times(path):
    with av.open(str(path)) as file:
        yield from file.decode(video=0)


class Broken:
    """Fails after its first write."""

    def __init__(self):
        self.writes, self.closed = 0, False

    def write(self, frames):
        self.writes += 1
        if self.writes > 1:
            raise OSError(28, "No space left on device")

    def close(self):
        self.closed = True


def test_a_sink_that_fails_is_reported_and_nobody_hangs():
    sink = Broken()
    with pytest.raises(OSError, match="No space left"), FrameWriter(sink) as writer:
        for _ in range(50):
            writer.write(draw(2))
    assert sink.closed
    assert writer.written == 2


class Slow:
    """Takes a frame only when it is allowed to."""

    def __init__(self):
        self.gate = threading.Semaphore(0)
        self.taken = 0

    def write(self, frames):
        self.gate.acquire()
        self.taken += 1

    def close(self):
        pass


def test_a_slow_sink_bounds_the_queue():
    sink = Slow()
    with FrameWriter(sink, capacity=2) as writer:
        done = threading.Event()

        def produce():
            for _ in range(10):
                writer.write(draw(1))
            done.set()

        thread = threading.Thread(target=produce)
        thread.start()
        assert not done.wait(0.3)
        assert writer.depth == 2
        for _ in range(10):
            sink.gate.release()
        thread.join()
    assert sink.taken == 10
    assert writer.stalled_seconds > 0.1


def test_the_null_sink_takes_everything():
    with FrameWriter(NullSink()) as writer:
        for _ in range(5):
            writer.write(draw(3))
    assert writer.written == 15
