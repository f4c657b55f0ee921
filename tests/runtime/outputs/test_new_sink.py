"""A sink that nothing else knows of takes one file with its kind, and one entry in the registry."""

import numpy as np
import pytest
from click.testing import CliRunner
from kit.refusals import assert_one_line

from runtime.cli.run import main
from runtime.outputs import SinkKind, registry
from runtime.pipeline import VideoPipeline

pytestmark = pytest.mark.cpu

PROMPT = "a red star bouncing on a navy background"


class RawSink:
    """The bytes of all frames, one after the other."""

    def __init__(self, path, *, scale, after=None, clear=None):
        self.path, self.frames = path, after["frames"] if after else 0
        self._scale, self._bytes, self._clear = scale, after["bytes"] if after else 0, clear

    def write(self, frames):
        if self._clear is not None:
            self._clear(())
            self._clear = None
        large = frames.repeat(self._scale, 1).repeat(self._scale, 2)
        with self.path.open("r+b" if self._bytes else "wb") as file:
            file.seek(self._bytes)
            self._bytes += file.write(large.tobytes())
        self.frames += len(frames)

    def mark(self):
        return {"frames": self.frames, "bytes": self._bytes}

    def close(self):
        pass


RAW = SinkKind(what="a .raw file", takes=lambda path: path.suffix == ".raw", open=RawSink)


def run(checkpoint, output, *more):
    asked = ["--prompt", PROMPT, "--checkpoint", checkpoint, "--chunks", 2, "--scale", 1, "-o", output, *more]
    return CliRunner().invoke(main, [str(each) for each in asked])


def test_a_sink_takes_one_file_and_one_entry(checkpoint, tmp_path, monkeypatch):
    output = tmp_path / "video.raw"
    assert_one_line(
        run(checkpoint, output), "cannot write .raw files; use null, - for standard output, an .mp4 file, a"
    )
    monkeypatch.setattr(registry, "KINDS", (*registry.KINDS, RAW))
    assert run(checkpoint, output).exit_code == 0
    with VideoPipeline.from_pretrained(checkpoint, device="cpu") as pipeline:
        chunks = list(pipeline(PROMPT, seconds=24 / 16))
    made = np.fromfile(output, dtype=np.uint8).reshape(-1, *chunks[0].shape[1:])
    assert np.array_equal(made, np.concatenate(chunks))
    assert output.with_name("video.raw.json").is_file()
    assert_one_line(run(checkpoint, output), "video.raw exists already")
    assert run(checkpoint, output, "--overwrite").exit_code == 0
    assert_one_line(run(checkpoint, tmp_path / "video.mkv"), "cannot write .mkv files", "or a .raw file")


def test_the_command_names_every_kind():
    said = " ".join(CliRunner().invoke(main, ["--help"]).output.split())
    assert all(kind.what in said for kind in registry.KINDS)
