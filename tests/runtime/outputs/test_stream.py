"""A video that is watched while it is made: through a pipe, a socket, or standard output."""

import io
import os
import socket
import threading

import av
import numpy as np
import pytest
from click.testing import CliRunner
from kit.refusals import assert_one_line

from runtime.cli.run import main
from runtime.outputs.mp4 import Mp4Sink
from runtime.outputs.stream import ReaderGoneError, StreamSink

pytestmark = pytest.mark.cpu


def draw(count, brightness=0):
    return np.arange(brightness, brightness + count, dtype=np.uint8)[:, None, None, None] + np.zeros(
        (1, 64, 64, 3), np.uint8
    )


def run(checkpoint, output, *more):
    asked = ("--prompt", "a red star", "--checkpoint", checkpoint, "--chunks", 3, "--scale", 1, "-o", output)
    return CliRunner().invoke(main, [str(each) for each in (*asked, *more)])


@pytest.fixture
def pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


class Reader(threading.Thread):
    """Reads all that comes through a pipe."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self._path, self.data = path, b""
        self.start()

    def run(self):
        self.data = self._path.read_bytes()

    def all(self):
        self.join(60)
        assert not self.is_alive()
        return self.data


def test_a_stream_has_the_bytes_of_the_file(pipe, tmp_path):
    reader = Reader(pipe)
    sinks = StreamSink(pipe, frames_per_second=16), Mp4Sink(tmp_path / "a.mp4", frames_per_second=16)
    for sink in sinks:
        for first in (0, 12, 24):
            sink.write(draw(12, first))
        sink.close()
    assert reader.all() == (tmp_path / "a.mp4").read_bytes()


def test_each_chunk_can_be_seen_before_the_next_is_made(pipe):
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    sink, data = StreamSink(pipe, frames_per_second=16), b""
    for chunks in (1, 2):
        sink.write(draw(12, 12 * chunks))
        data += os.read(reader, 1 << 16)
        with av.open(io.BytesIO(data)) as file:
            assert len(list(file.decode(video=0))) == 12 * chunks
    sink.close()
    os.close(reader)


def test_a_socket_takes_a_stream(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        sink = StreamSink(tmp_path / "s", frames_per_second=16)
        sink.write(draw(2))
        sink.close()
        with server.accept()[0] as connection, connection.makefile("rb") as file:
            video = file.read()
    with av.open(io.BytesIO(video)) as file:
        assert len(list(file.decode(video=0))) == 2


def test_a_reader_that_goes_away_is_told_from_other_failures(pipe):
    sink = StreamSink(pipe, frames_per_second=16)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    sink.write(draw(2))
    os.close(reader)
    with pytest.raises(ReaderGoneError, match="nobody reads"):
        sink.write(draw(2))
    sink.close()


def test_a_command_streams_into_a_pipe_and_keeps_nothing(checkpoint, pipe, tmp_path):
    reader = Reader(pipe)
    result = run(checkpoint, pipe)
    assert result.exit_code == 0, result.output
    assert "is a stream: no state is kept" in result.stderr
    with av.open(io.BytesIO(reader.all())) as file:
        assert len(list(file.decode(video=0))) == 36
    assert list(tmp_path.iterdir()) == [pipe]
    assert_one_line(run(checkpoint, pipe, "--overwrite"), "leave --overwrite out")


def test_standard_output_takes_nothing_but_the_video(checkpoint, tmp_path, monkeypatch, capfdbinary):
    monkeypatch.chdir(tmp_path)
    result = run(checkpoint, "-")
    assert result.exit_code == 0, result.output
    assert result.stdout == "" and "36 frames" in result.stderr
    with av.open(io.BytesIO(capfdbinary.readouterr().out)) as file:
        assert len(list(file.decode(video=0))) == 36
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_ends_the_run_in_one_line(checkpoint, pipe, monkeypatch):
    usual, reader = StreamSink.write, os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def write(sink, frames):
        usual(sink, frames)
        if sink.mark()["frames"] == 12:
            os.close(reader)

    monkeypatch.setattr(StreamSink, "write", write)
    result = run(checkpoint, pipe)
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == f"Error: nobody reads {pipe} any more; 12 frames were sent"
