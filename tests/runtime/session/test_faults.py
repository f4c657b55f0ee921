"""What goes wrong at the edges: the rollout slows or stops as it should, and says in one line why."""

import json
import threading
import time
from pathlib import Path

import av
import pytest
from click.testing import CliRunner
from kit.processes.galleries import Stalling
from kit.processes.sessions import FullDisk, make_video
from PIL import Image

from plugins.atomic_files import temporary_path
from plugins.errors import UserError
from runtime.cli.run import main
from runtime.device.worker_thread import WorkerThread
from runtime.outputs.mp4 import Mp4Sink
from runtime.outputs.png import PngSink
from runtime.planning.job import Job
from runtime.resume.autosave import Autosave
from runtime.resume.state import state_path
from runtime.session.destination import open_sink
from runtime.session.replay import new
from runtime.telemetry.events import NoTelemetry

pytestmark = pytest.mark.cpu

RED = "a red star bouncing on a navy background"


@pytest.fixture
def order(checkpoint):
    return new(RED, checkpoint, scale=1, chunks=8)


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):
    """The bytes of the video that nothing disturbs."""
    path = tmp_path_factory.mktemp("whole") / "a.mp4"
    run("--prompt", RED, "--checkpoint", checkpoint, "--chunks", 8, "--scale", 1, "-o", path)
    return path.read_bytes()


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result


def make(order, sink, output=None, telemetry=None):
    autosave = None if output is None else Autosave(output, order.describe, every=0.0)
    return make_video(order.job, sink, telemetry or NoTelemetry(), frames=order.frames, autosave=autosave)


def frames_in(path):
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


class Chunks(NoTelemetry):
    def __init__(self):
        self.reports = []

    def chunk(self, report):
        self.reports.append(report)


def test_a_blocked_sink_slows_the_rollout_down_and_is_counted(order):
    sink, told = Stalling(), Chunks()
    thread = threading.Thread(target=make, args=(order, sink), kwargs={"telemetry": told})
    thread.start()
    assert sink.waiting.wait(600)
    while len(told.reports) < 3:
        time.sleep(0.05)
    time.sleep(3)
    assert len(told.reports) == 3  # one in the sink, two in its queue
    sink.gate.set()
    thread.join()
    assert sink.mark()["frames"] == 96
    assert told.reports[-1].stalls > 0
    assert told.reports[-1].stalled_seconds > 0.1
    assert max(report.queue_depth for report in told.reports) <= 2


def test_a_full_disk_stops_it_and_it_goes_on_when_there_is_room(order, whole, tmp_path):
    output = tmp_path / "a.mp4"
    with pytest.raises(UserError) as caught:
        make(order, FullDisk(output, frames_per_second=16), output)
    assert str(caught.value) == (
        f"cannot write the video: No space left on device; 24 frames were kept; "
        f"resume with: vmla-run --resume {output}"
    )
    assert frames_in(output) == 24
    run("--resume", output)
    assert output.read_bytes() == whole


class Failing:
    """A decoder that gives up at its third chunk."""

    def __init__(self, decoder):
        self._decoder, self._calls = decoder, 0
        self.state = None

    def decode(self, latents):
        self._calls += 1
        if self._calls == 3:
            raise RuntimeError("out of memory\nand more about it")
        frames = self._decoder.decode(latents)
        self.state = self._decoder.state
        return frames


def test_a_decoder_that_raises_is_named_and_the_video_goes_on(order, whole, tmp_path, monkeypatch):
    output, decoders = tmp_path / "a.mp4", Job.decoders
    with monkeypatch.context() as patch:
        patch.setattr(Job, "decoders", lambda job: lambda: Failing(decoders(job)()))
        with pytest.raises(UserError, match="chunk 2 failed: out of memory; 24 frames were kept; resume"):
            make(order, open_sink(output, scale=1), output)
    assert frames_in(output) == 24
    run("--resume", output)
    assert output.read_bytes() == whole


class Remove(NoTelemetry):
    """Takes away what is being written."""

    def __init__(self, path):
        self._path = path

    def chunk(self, report):
        if report.chunk == 5:
            self._path.unlink()


def test_a_file_that_is_removed_is_noticed(order, tmp_path):
    output = tmp_path / "a.mp4"
    with pytest.raises(UserError, match=r"a\.mp4 was moved, removed or replaced meanwhile; it had [0-9]+ f"):
        make(order, Mp4Sink(output, frames_per_second=16), telemetry=Remove(output))


class Move(NoTelemetry):
    """Takes away the folder that is being written to, in one step."""

    def __init__(self, folder, elsewhere):
        self._folder, self._elsewhere = folder, elsewhere

    def chunk(self, report):
        if report.chunk == 5:
            self._folder.rename(self._elsewhere)


def test_a_folder_that_is_taken_away_is_noticed_and_its_pictures_are_whole(order, tmp_path):
    output, elsewhere = tmp_path / "a", tmp_path / "b"
    with pytest.raises(UserError, match="a was moved, removed or replaced meanwhile; it had [0-9]+ frames"):
        make(order, PngSink(output), telemetry=Move(output, elsewhere))
    pictures = sorted(elsewhere.glob("*.png"))
    assert len(pictures) >= 24
    for number, path in enumerate(pictures):
        assert path.name == f"{number:06d}.png"
        with Image.open(path) as picture:
            picture.load()
    assert not output.exists()


def test_a_state_that_cannot_be_written_stops_the_video(order, tmp_path):
    output = tmp_path / "a.mp4"
    temporary_path(state_path(output)).mkdir()
    with pytest.raises(UserError, match="its state, beside it"):
        make(order, open_sink(output, scale=1), output)


def test_what_a_thread_was_handed_is_done_in_order_and_its_failure_comes_back():
    done = []
    with WorkerThread("test") as thread:
        for number in range(20):
            thread.put(lambda number=number: done.append(number))
    assert done == list(range(20))
    with pytest.raises(ZeroDivisionError), WorkerThread("test", finish=lambda: done.append("end")) as thread:
        thread.put(lambda: 1 / 0)
        while True:
            thread.put(lambda: done.append("never"))
    assert done[20:] == ["end"]


def test_events_of_prompts_and_chunks_are_whole_lines(checkpoint, tmp_path):
    (tmp_path / "p.yaml").write_text(f"0: {RED}\n1.5: a blue ring resting on a gray background\n")
    arguments = ["--prompts", tmp_path / "p.yaml", "--checkpoint", checkpoint, "--chunks", 4, "-o", "null"]
    run(*arguments, "--events", tmp_path / "e.jsonl", "--metrics", tmp_path / "m.prom")
    events = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    said = [(e["state"], e["request"], e["chunk"]) for e in events if e["event"] == "prompt"]
    assert said == [("accepted", 1, 2), ("applied", 1, 2)]
    chunks = [e for e in events if e["event"] == "chunk"]
    assert [e["chunk"] for e in chunks] == [0, 1, 2, 3]
    assert [e["prompt"].split()[1] for e in chunks] == ["red", "red", "blue", "blue"]
    assert chunks[0]["clean_seconds"] == 0
    assert all(e["clean_seconds"] > 0 for e in chunks[1:])
    assert "videomla_frames 48\n" in (tmp_path / "m.prom").read_text()
    assert not Path("null").exists()
