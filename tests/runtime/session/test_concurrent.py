"""`vmla-run --videos`: each is what it is alone, as many as fit, stopped and gone on with like any other."""

import json
import signal
import time
from threading import Event

import av
import pytest
import torch
from click.testing import CliRunner
from kit.processes.commands import Commands
from kit.processes.sessions import FullDisk, StopAt
from kit.refusals import assert_one_line

from plugins.errors import UserError
from runtime.cli.run import main
from runtime.device import memory
from runtime.engines.base import EagerEngine
from runtime.prompts.videos_file import VideoEntry, read_videos
from runtime.resume.state import state_path
from runtime.session import generate
from runtime.session.generate import make_videos, orders_of
from runtime.session.replay import new, resume
from runtime.telemetry.events import NoTelemetry

pytestmark = pytest.mark.cpu

RED, BLUE = "a red star bouncing on a navy background", "a blue ring resting on a gray background"
FILE = f"star: {RED}\nring: {{prompt: {BLUE}, seed: 3}}\nagain: {RED}\n"
WISHES = {"star": (RED, 7), "ring": (BLUE, 3), "again": (RED, 7)}
CHUNKS, PLENTY = 6, 1 << 40


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def common(checkpoint, chunks=CHUNKS):
    return "--checkpoint", checkpoint, "--chunks", chunks, "--scale", 1, "--seed", 7


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory):
    """Each video made by itself: their folder."""
    folder = tmp_path_factory.mktemp("alone")
    for name, (prompt, seed) in WISHES.items():
        asked = (*common(checkpoint), "--prompt", prompt, "--seed", seed, "-o", folder / f"{name}.mp4")
        result = run(*asked)
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def listing(tmp_path):
    path = tmp_path / "videos.yaml"
    path.write_text(FILE)
    return path


def assert_same(folder, other, names=WISHES):
    for name in names:
        assert (folder / f"{name}.mp4").read_bytes() == (other / f"{name}.mp4").read_bytes(), name


def frames_in(path):
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


def test_each_is_what_it_is_alone_and_its_sidecar_makes_it_again(checkpoint, alone, listing, tmp_path):
    out, more = tmp_path / "out", ("--events", tmp_path / "e.jsonl", "--metrics", tmp_path / "m.prom")
    result = run("--videos", listing, *common(checkpoint), "-o", out, *more)
    assert result.exit_code == 0, result.output
    assert_same(out, alone)
    files = {path.name for path in out.iterdir()}
    assert files == {f"{name}.mp4{ending}" for name in WISHES for ending in ("", ".json")}
    assert "3 videos, 216 frames in" in result.output
    assert "hold" in result.output
    assert "real time each" in result.output
    for name in WISHES:
        one, other = (json.loads((folder / f"{name}.mp4.json").read_text()) for folder in (out, alone))
        for varying in ("load_seconds", "seconds", "state_seconds", "peak_bytes", "timing"):
            assert one.pop(varying) is not None
            other.pop(varying)
        assert one == other
    events = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    for name in WISHES:
        assert [e["chunk"] for e in events if e["video"] == name] == list(range(CHUNKS))
    assert 'videomla_frames{video="ring"} 72\n' in (tmp_path / "m.prom").read_text()
    result = run("--repeat", out / "ring.mp4.json", "-o", tmp_path / "ring.mp4")
    assert result.exit_code == 0, result.output
    assert_same(tmp_path, alone, ["ring"])
    assert_one_line(run("--videos", listing, *common(checkpoint), "-o", out), "star.mp4 exists already")


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (f"../a: {RED}\n", ["'../a' is not a name for a file"]),
        (f"a/b: {RED}\n", ["is not a name for a file"]),
        (f"'..': {RED}\n", ["is not a name for a file"]),
        (f"'': {RED}\n", ["is not a name for a file"]),
        (f"{'a' * 201}: {RED}\n", ["more than 200 bytes"]),
        (f"5: {RED}\n", ["entry 1: field name is 5; input should be a valid string"]),
        (f"a: {RED}\na: {BLUE}\n", ["line 2: the key a stands there twice"]),
        (f"a: {RED}\nA: {BLUE}\n", ["names 2 videos 'a'"]),
        (f"a: {{prompt: {RED}, sed: 3}}\n", ["entry 1: field sed is unknown"]),
        (f"a: {{prompt: {RED}, name: b}}\n", ["says name twice"]),
        (f"a: {{prompt: {RED}, seed: x}}\n", ["field seed is 'x'; input should be a valid integer"]),
        (f"a: {{prompt: {RED}, seed: true}}\n", ["field seed is True; input should be a valid integer"]),
        ("a: 5\n", ["field prompt is 5; input should be a valid string"]),
        ("a: ''\n", ["the prompt is empty"]),
        ("", ["holds no prompt"]),
        ("hello", ["no list of prompts"]),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_is_refused(checkpoint, tmp_path, text, fragments):
    file = tmp_path / "videos.yaml"
    file.write_text(text)
    assert_one_line(run("--videos", file, *common(checkpoint), "-o", tmp_path / "out"), *fragments)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--prompt", RED], ["leave out --prompt"]),
        (["--resume", "a.mp4"], ["leave out --resume"]),
        (["-o", "a.mp4"], ["a.mp4 is not a folder"]),
        (["-o", "null"], ["null is not a folder"]),
        (["-o", "no/such"], ["there is no folder no"]),
        (["--memory", "much"], ["'much' is not an amount of memory"]),
        (["--memory", "0"], ["but 0 hold 0"]),
    ],
    ids=str,
)
def test_nonsense_is_refused(checkpoint, listing, tmp_path, arguments, fragments, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_line(run("--videos", listing, *common(checkpoint), "-o", "out", *arguments), *fragments)
    assert list(tmp_path.iterdir()) == [listing]


def test_both_ways_to_write_it_are_read_alike(listing, tmp_path):
    lines = [{"name": "star", "prompt": RED}, {"name": "ring", "prompt": BLUE, "seed": 3},
             {"name": "again", "prompt": RED}]  # fmt: skip
    (tmp_path / "v.jsonl").write_text("\n".join(map(json.dumps, lines)))
    wanted = [VideoEntry(name="star", prompt=RED), VideoEntry(name="ring", prompt=BLUE, seed=3),
              VideoEntry(name="again", prompt=RED)]  # fmt: skip
    assert read_videos(listing) == read_videos(tmp_path / "v.jsonl") == wanted


def test_more_than_fit_are_refused_before_anything_is_written(checkpoint, listing, tmp_path):
    plan = new(RED, checkpoint, scale=1, chunks=CHUNKS).job.plan()
    asked = ("--videos", listing, *common(checkpoint), "-o", tmp_path / "out")
    short = plan.bytes_for(3) - 1
    assert_one_line(run(*asked, "--memory", short), f"{short:,} hold 2", f"take {plan.bytes_for(3):,} bytes")
    assert list(tmp_path.iterdir()) == [listing]
    result = run(*asked, "--memory", short, "--dry-run")
    assert result.exit_code == 0
    assert f"memory: {short:,} bytes allowed hold 2 such videos, 3 take" in result.output
    assert "bytes free on cpu hold" in run(*asked, "--dry-run").output
    assert list(tmp_path.iterdir()) == [listing]
    assert_one_line(run("--prompt", RED, "--memory", "1GiB", "-o", "null"), "--memory limits how many")


def test_amounts_of_memory(tmp_path, monkeypatch):
    amounts = {"8GiB": 8 << 30, "1.5 MB": 1_500_000, "12": 12, "3B": 3, "2KiB": 2048, "1kB": 1000}
    assert {text: memory.parse_bytes(text) for text in amounts} == amounts
    for text in ("", "GiB", "-1", "1 XB", "1e9"):
        with pytest.raises(UserError, match="not an amount of memory"):
            memory.parse_bytes(text)
    group = {"memory.max": "9000", "memory.current": "5000", "memory.stat": "inactive_file 700"}
    for name, said in group.items():
        (tmp_path / name).write_text(said + "\n")
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    assert memory.free_bytes(torch.device("cpu")) == 4700
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(torch.device("cpu")) > 4700


def test_one_whose_sink_fails_ends_alone_and_goes_on_later(checkpoint, alone, listing, tmp_path, monkeypatch):
    out, usual = tmp_path / "out", generate.open_sink

    def sink(path, *, scale, clear):
        if path.stem == "ring":
            return FullDisk(path, frames_per_second=16, clear=clear)
        return usual(path, scale=scale, clear=clear)

    with monkeypatch.context() as patch:
        patch.setattr(generate, "open_sink", sink)
        result = run("--videos", listing, *common(checkpoint), "-o", out, "--save-every", 0)
    assert result.exit_code == 2, result.output
    last = result.output.splitlines()[-1]
    assert f"1 of 3 videos failed: {out / 'ring.mp4'}: cannot write the video: No space left" in last
    assert "24 frames were kept; resume with: vmla-run --resume" in last
    assert_same(out, alone, ["star", "again"])
    assert run("--resume", out / "ring.mp4").exit_code == 0
    assert_same(out, alone)


def test_one_whose_prompt_fails_ends_alone(checkpoint, alone, listing, tmp_path, monkeypatch):
    usual = EagerEngine.encode_prompt

    def encode(engine, prompts):
        if BLUE in prompts:
            raise UserError("no such word")
        return usual(engine, prompts)

    monkeypatch.setattr(EagerEngine, "encode_prompt", encode)
    result = run("--videos", listing, *common(checkpoint), "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].endswith("ring.mp4: no such word")
    assert_same(tmp_path / "out", alone, ["star", "again"])


@pytest.mark.parametrize("at", [None, 1], ids=["at once", "later"])
def test_stopped_ones_go_on_to_the_identical_files(checkpoint, alone, tmp_path, at):
    kind, stop = new(RED, checkpoint, scale=1, chunks=CHUNKS, seed=7), Event()
    videos = [VideoEntry(name=name, prompt=prompt, seed=seed) for name, (prompt, seed) in WISHES.items()]
    orders = {tmp_path / f"{name}.mp4": order for name, order in orders_of(videos, kind).items()}
    if at is None:
        stop.set()
    endings = make_videos(orders, telemetry=lambda output: StopAt(stop, at), stop=stop, memory=PLENTY)
    assert [ending.failure for ending in endings] == [None] * 3
    assert not any(ending.outcome.complete for ending in endings)
    for ending in endings:
        assert state_path(ending.output).exists()
        assert run("--resume", ending.output).exit_code == 0
        assert not state_path(ending.output).exists()
    assert_same(tmp_path, alone)


def test_a_stopped_batch_goes_on_as_a_batch(checkpoint, alone, tmp_path):
    kind, stop = new(RED, checkpoint, scale=1, chunks=CHUNKS, seed=7), Event()
    videos = [VideoEntry(name=name, prompt=prompt, seed=seed) for name, (prompt, seed) in WISHES.items()]
    orders = {tmp_path / f"{name}.mp4": order for name, order in orders_of(videos, kind).items()}
    make_videos(orders, telemetry=lambda output: StopAt(stop, 1), stop=stop)
    result = run("--resume", tmp_path)
    assert result.exit_code == 0, result.output
    assert f"resuming {len(WISHES)} videos" in result.output
    assert_same(tmp_path, alone)
    assert not list(tmp_path.glob("*.state"))
    assert_one_line(run("--resume", tmp_path), tmp_path.name)


def test_stopped_ones_go_on_together_beside_a_new_one(checkpoint, alone, tmp_path):
    kind, stop = new(RED, checkpoint, scale=1, chunks=CHUNKS, seed=7), Event()
    videos = [VideoEntry(name=name, prompt=prompt, seed=seed) for name, (prompt, seed) in WISHES.items()]
    orders = {tmp_path / f"{name}.mp4": order for name, order in orders_of(videos, kind).items()}
    fresh = orders.popitem()
    make_videos(orders, telemetry=lambda output: StopAt(stop, 1), stop=stop)
    rest = {output: resume(output, {}) for output in orders}
    assert all(0 < order.state.mark["frames"] < 12 * CHUNKS for order in rest.values())
    endings = make_videos(rest | dict([fresh]), telemetry=lambda output: NoTelemetry(), stop=Event())
    assert all(ending.outcome.complete for ending in endings)
    assert_same(tmp_path, alone)
    assert not list(tmp_path.glob("*.state"))


def test_ctrl_c_finishes_the_chunks_and_leaves_files_that_play(checkpoint, listing, tmp_path):
    out = tmp_path / "out"
    with Commands(tmp_path) as commands:
        started = commands.start("--videos", listing, *common(checkpoint, 4000), "-o", out)
        last = out / "again.mp4"
        while started.running() and not (last.exists() and last.stat().st_size > 1000):
            time.sleep(0.01)
        started.send(signal.SIGINT)
        status, said = started.wait()
    assert status == 130, said
    assert "Traceback" not in said
    for name in WISHES:
        assert f"resume with: vmla-run --resume {out / name}.mp4" in said
        told = json.loads((out / f"{name}.mp4.json").read_text())
        assert told["complete"] is False
        assert frames_in(out / f"{name}.mp4") == told["frames_written"] > 0
        assert told["frames_written"] % 12 == 0
