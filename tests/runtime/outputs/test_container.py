"""WebM and GIF: frames come back, what lies there is ours alone, and what was begun ends when stopped."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
from click.testing import CliRunner
from kit.refusals import assert_one_line

from plugins.errors import UserError
from runtime.cli.run import main
from runtime.outputs.container import GIF, WEBM
from runtime.outputs.presence import LostOutputError
from runtime.outputs.registry import kind_of

pytestmark = pytest.mark.cpu

PROMPT = "a red star bouncing on a navy background"
each_kind = pytest.mark.parametrize("kind, ending, most", [(WEBM, "webm", 4), (GIF, "gif", 6)])


def moving(count, size=64):
    """A bright square on its way over a ramp."""
    frames = np.empty((count, size, size, 3), np.uint8)
    frames[:] = np.linspace(20, 120, size).astype(np.uint8)[None, :, None]
    for number, frame in enumerate(frames):
        frame[10:26, number : number + 16] = (230, 60, 40)
    return frames


def read(path):
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


@each_kind
def test_frames_come_back_enlarged_and_on_time(kind, ending, most, tmp_path):
    frames, path = moving(40), tmp_path / f"a.{ending}"
    assert kind_of(path) is kind
    sink = kind.open(path, scale=2)
    for first in range(0, 40, 12):
        sink.write(frames[first : first + 12])
        assert path.is_file()
    assert sink.mark() == {"frames": 40}
    sink.close()
    again = read(path)
    assert again.shape == (40, 128, 128, 3)
    assert np.abs(again[:, ::2, ::2].astype(float) - frames).mean() < most
    with av.open(str(path)) as file:
        times = [packet.pts * packet.time_base for packet in file.demux(video=0) if packet.size]
    assert all(abs(time - Fraction(n, 16)) <= Fraction(1, 100) for n, time in enumerate(times))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@each_kind
def test_nothing_written_leaves_nothing_and_what_is_moved_is_noticed(kind, ending, most, tmp_path):
    path = tmp_path / f"a.{ending}"
    kind.open(path, scale=1).close()
    assert not list(tmp_path.iterdir())
    sink = kind.open(path, scale=1)
    sink.write(moving(2))
    path.rename(tmp_path / "moved")
    with pytest.raises(LostOutputError):
        sink.write(moving(2))
    sink.close()
    with pytest.raises(UserError, match="cannot be resumed"):
        kind.open(path, scale=1, after={"frames": 2})


@each_kind
def test_an_older_video_stays_until_there_are_frames(kind, ending, most, tmp_path):
    path, cleared = tmp_path / f"a.{ending}", []
    path.write_bytes(b"older")
    sink = kind.open(path, scale=1, clear=cleared.append)
    assert path.read_bytes() == b"older" and not cleared
    sink.write(moving(2))
    sink.close()
    assert len(read(path)) == 2 and cleared == [()]


@pytest.mark.parametrize("ending", ["webm", "gif"])
def test_the_command_writes_one_with_a_sidecar_and_no_state(ending, checkpoint, tmp_path):
    output = tmp_path / f"star.{ending}"

    def run(*more):
        words = ["--checkpoint", checkpoint, "--threads", 1, *more]
        return CliRunner().invoke(main, [str(word) for word in words])

    made = run("--prompt", PROMPT, "--chunks", 2, "--scale", 1, "-o", output)
    assert made.exit_code == 0 and "cannot be resumed" in made.output
    assert len(read(output)) == 24
    sidecar = output.with_name(output.name + ".json")
    assert sorted(tmp_path.iterdir()) == [output, sidecar]
    assert json.loads(sidecar.read_text())["complete"]
    assert_one_line(run("--resume", output), "cannot be resumed")
    assert_one_line(run("--prompt", PROMPT, "-o", output), "exists already")
    again = run("--repeat", sidecar, "-o", output, "--overwrite")
    assert again.exit_code == 0, again.output
