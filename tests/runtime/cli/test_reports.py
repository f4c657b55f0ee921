"""Neither a terminal nor a file of reports ever ends a video."""

import errno
import json
import os
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from kit.refusals import assert_one_line

from bench.cli import main as bench
from runtime.cli.export import main as export
from runtime.cli.run import main
from runtime.cli.serve import main as serve
from runtime.telemetry import events, metrics
from vmla.cli.streams import ForgivingStream, forgiving_streams
from vmla.train.cli.commands import main as train

pytestmark = pytest.mark.cpu


def run(checkpoint, output, *more):
    asked = ("--prompt", "a red star", "--checkpoint", checkpoint, "--chunks", 4, "--scale", 1, "-o", output)
    return CliRunner().invoke(main, [str(each) for each in (*asked, *more)])


class Full:
    """A file on a disk that is full after some lines."""

    def __init__(self, file, lines):
        self._file, self._left = file, lines

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, line):
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(line)


def whole(output):
    return json.loads(output.with_name(output.name + ".json").read_text())["complete"]


def test_events_on_a_disk_that_fills_are_given_up_with_one_warning(checkpoint, tmp_path, monkeypatch):
    usual, output, told = events.JsonLines.__enter__, tmp_path / "a.mp4", tmp_path / "e.jsonl"

    def enter(lines):
        usual(lines)
        lines._file = Full(lines._file, 2)
        return lines

    monkeypatch.setattr(events.JsonLines, "__enter__", enter)
    result = run(checkpoint, output, "--events", told)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("warning") == 1
    assert f"warning: {told} is not written any more: No space left on device" in result.stderr
    assert [json.loads(line)["chunk"] for line in told.read_text().splitlines()] == [0, 1]
    assert whole(output)


def test_metrics_on_a_disk_that_fills_are_given_up_with_one_warning(checkpoint, tmp_path, monkeypatch):
    def refuse(path, text):
        if "videomla_chunks 1\n" in text:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_text(text)

    monkeypatch.setattr(metrics, "atomic_write_text", refuse)
    result = run(checkpoint, tmp_path / "a.mp4", "--metrics", tmp_path / "m.prom")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("m.prom is not written any more: No space left") == 1
    assert whole(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("option", "name", "said"),
    [
        ("--events", "no/e.jsonl", "there is no folder"),
        ("--metrics", "no/m.prom", "there is no folder"),
        ("--events", "folder", "is a directory"),
        ("--metrics", "a.mp4.json", "give each its own file"),
        ("--events", "a.mp4.state", "give each its own file"),
        ("--events", "n" * 300, "File name too long: "),
    ],
)
def test_what_can_be_known_before_is_refused_before(checkpoint, tmp_path, option, name, said):
    (tmp_path / "folder").mkdir()
    assert_one_line(run(checkpoint, tmp_path / "a.mp4", option, tmp_path / name), said)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_events_go_to_standard_output_and_nothing_else_does(checkpoint, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    result = run(checkpoint, "a.mp4", "--events", "-")
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["chunk"] for line in capfd.readouterr().out.splitlines()] == [0, 1, 2, 3]
    assert result.stdout == "" and "a.mp4: 48 frames" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "a.mp4.json"}


@pytest.mark.parametrize("events", ["-", "/dev/stdout", "/dev/fd/1"])
def test_a_video_and_events_do_not_share_standard_output(checkpoint, events):
    assert_one_line(run(checkpoint, "-", "--events", events), f"--events and the video - are both {events}")


@pytest.mark.parametrize(
    ("command", "given"),
    [
        (main, ("--prompt", "a star", "-o", "null", "--metrics", "-")),
        (main, ("--videos", "-", "-o", "videos")),
        (export, ("build", "-o", "-")),
        (export, ("calibrate", "-o", "-")),
        (train, ("run", "debug", "-o", "-")),
        (train, ("pack-stages", "-", "--start", "sprites", "-o", "x")),
        (serve, ("--store", "-")),
    ],
)
def test_nowhere_else_is_a_dash_the_name_of_a_file(tmp_path, monkeypatch, command, given):
    monkeypatch.chdir(tmp_path)
    assert_one_line(
        CliRunner().invoke(command, given), "- is not a standard stream here; name a file or folder"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "given"),
    [
        (export, ("build", "-o")),
        (export, ("calibrate", "-o")),
        (train, ("run", "debug", "-o")),
        (train, ("inspect", "none", "-o")),
        (bench, ("report", "none", "-o")),
    ],
)
def test_no_command_writes_to_a_pipe_or_through_a_link(tmp_path, command, given):
    pipe, link, mine = (tmp_path / name for name in ("pipe", "link", "mine"))
    os.mkfifo(pipe)
    mine.write_text("mine")
    link.symlink_to(mine)
    for path in (pipe, link):
        result = CliRunner().invoke(command, [*given, str(path)])
        assert result.exit_code == 2
        assert str(path) in result.output.splitlines()[-1]
    assert pipe.is_fifo() and link.is_symlink() and mine.read_text() == "mine"


def test_a_working_directory_that_was_removed_is_said(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    assert_one_line(run(checkpoint, "a.mp4"), "the working directory was removed")
    assert_one_line(
        CliRunner().invoke(train, ["run", "debug", "-o", "run"]), "the working directory was removed"
    )


@pytest.mark.parametrize("option", ["--events", "--metrics"])
def test_what_holds_no_reports_is_never_replaced_by_any(checkpoint, tmp_path, option):
    notes, prompts = tmp_path / "notes", tmp_path / "prompts.yaml"
    notes.write_text("mine")
    prompts.write_text("1: a red star\n")
    (tmp_path / "link").symlink_to("prompts.yaml")
    assert_one_line(run(checkpoint, "null", option, notes), f"holds no {option[2:]}, so it is not replaced")
    both = run(checkpoint, "null", "--prompts", prompts, option, tmp_path / "link")
    assert_one_line(both, f"{option} and --prompts are both")
    assert notes.read_text() == "mine" and prompts.read_text() == "1: a red star\n"


def test_reports_of_an_earlier_run_are_replaced_and_no_detour_leads_into_the_video(checkpoint, tmp_path):
    (tmp_path / "sub").mkdir()
    output, told = tmp_path / "a.mp4", ("--events", tmp_path / "e", "--metrics", tmp_path / "m")
    for more in (), ("--overwrite",):
        result = run(checkpoint, output, *told, *more)
        assert result.exit_code == 0, result.output
    assert len((tmp_path / "e").read_text().splitlines()) == 4
    before = output.read_bytes()
    detour = tmp_path / "sub" / ".." / "a.mp4"
    assert_one_line(run(checkpoint, output, "--overwrite", "--events", detour), "give each its own file")
    assert output.read_bytes() == before


def test_events_into_a_pipe_wait_for_no_reader(checkpoint, tmp_path):
    """Nobody reads it: refused before; a reader who does not keep up: no more events, and the whole video."""
    pipe, output = tmp_path / "pipe", tmp_path / "a.mp4"
    os.mkfifo(pipe)
    assert_one_line(run(checkpoint, output, "--events", pipe), "nobody reads it; start its reader first")
    assert not output.exists()
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY)
    os.set_blocking(writer, False)
    os.write(writer, bytes(1 << 20))  # as much as it takes
    result = run(checkpoint, output, "--events", pipe)
    os.close(reader)
    os.close(writer)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("is not written any more: its reader does not keep up") == 1
    assert whole(output)


def test_a_video_is_not_sent_to_a_standard_output_that_is_closed(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit), monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        patch.setattr(sys, "stderr", (tmp_path / "said").open("w"))
        main(["--prompt", "a star", "--checkpoint", str(checkpoint), "-o", "-"])
    assert (tmp_path / "said").read_text().startswith("Error: standard output is closed")


def test_what_is_no_file_is_never_replaced_by_metrics(checkpoint, tmp_path):
    assert_one_line(run(checkpoint, tmp_path / "a.mp4", "--metrics", "/dev/null"), "/dev/null is not a file")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), BrokenPipeError(), ValueError("closed")])
def test_a_stream_that_fails_falls_silent(error):
    class Broken:
        encoding = "utf-8"
        writes = 0

        def write(self, text):
            self.writes += 1
            raise error

        def fileno(self):
            raise ValueError

    broken = Broken()
    stream = ForgivingStream(broken)
    assert stream.write("one") == 3
    stream.write("two")
    stream.flush()
    assert stream.silent and broken.writes == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full to write to")
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_full_standard_output_stops_nobody(monkeypatch, encoding):
    with Path("/dev/full").open("w", encoding=encoding) as full:
        monkeypatch.setattr(sys, "stdout", full)
        with forgiving_streams():
            for _ in range(3):
                click.echo("heard by nobody")  # which encodes by itself where the stream is ASCII
            assert sys.stdout.silent == (encoding != "ascii")
    assert full.closed


def test_what_a_terminal_cannot_show_is_spelled_out(tmp_path):
    with (tmp_path / "said").open("w", encoding="ascii") as file:
        ForgivingStream(file).write("café")
    assert (tmp_path / "said").read_text() == "caf\\xe9"


def test_a_stream_that_was_closed_at_the_start_takes_everything(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with forgiving_streams():
        sys.stderr.write("heard by nobody")
        sys.stderr.flush()
        assert sys.stderr.silent
    assert sys.stderr is None
