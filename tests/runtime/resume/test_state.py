"""A video that was stopped or killed at any moment plays, and goes on to the identical file."""

import hashlib
import json
import random
import shutil
import signal
import time

import av
import pytest
import torch
from click.testing import CliRunner
from kit.processes.commands import Commands
from kit.processes.sessions import StopAt, make_video
from kit.refusals import assert_one_line
from safetensors import safe_open
from safetensors.torch import load_file

from plugins.errors import UserError
from runtime.cli.run import main
from runtime.resume import state as state_file
from runtime.resume.autosave import Autosave
from runtime.resume.state import Snapshot, State, load_state, save_state, state_path
from runtime.session.destination import open_sink
from runtime.session.replay import new, resume
from vmla.weights.formats.files import write_tensors

pytestmark = pytest.mark.cpu

RED, BLUE = "a red star bouncing on a navy background", "a blue ring resting on a gray background"
PROMPTS = f"0: {RED}\n12: {{prompt: {BLUE}, policy: recache}}\n24: {{prompt: {RED}, policy: reset}}\n"
CHUNKS, KILLS = 48, 10
ATTEMPTS = 3 * KILLS
"""On a busy machine, a run may be over before its moment has come."""
HEADER = 1000
"""Bytes that a file with any frame in it has at least."""


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):
    """A video that nothing interrupted, of several prompts: its folder."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "prompts.yaml").write_text(PROMPTS)
    result = run(*asked(folder, checkpoint), "-o", folder / "a.mp4")
    assert result.exit_code == 0, result.output
    return folder


def asked(folder, checkpoint):
    return ("--prompts", folder / "prompts.yaml", "--checkpoint", checkpoint, "--chunks", CHUNKS,
            "--scale", 1, "--save-every", 0.05)  # fmt: skip


def frames_in(path):
    if path.stat().st_size < HEADER:
        return 0
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


def wait_for_size(path, size, started):
    while started.running() and not (path.exists() and path.stat().st_size >= size):
        time.sleep(0.001)


def wait_for_moment(luck, output, size, started):
    """Until the video has grown to `size`, or no longer than loading takes; and a little more."""
    if luck.random() < 0.7:
        wait_for_size(output, size, started)
        time.sleep(luck.uniform(0, 0.02))  # into the next fragment, or the state of this one
    else:
        time.sleep(luck.uniform(0, 0.3))


def assert_plays(output, seed):
    """Whole chunks are in the video, and all that its state speaks of."""
    frames = frames_in(output) if output.exists() else 0
    assert frames % 12 == 0, f"seed {seed}"
    if state_path(output).exists():
        state, _ = load_state(state_path(output), mend="")
        assert frames >= state.mark["frames"] == 12 * state.snapshot.number, f"seed {seed}"


def test_killed_at_ten_random_moments_it_plays_and_goes_on_to_the_identical_file(checkpoint, whole, tmp_path):
    seed = time.time_ns()
    luck = random.Random(seed)
    wanted, output = (whole / "a.mp4").read_bytes(), tmp_path / "a.mp4"
    killed = 0
    with Commands(tmp_path) as commands:
        afresh = (*asked(whole, checkpoint), "-o", output, "--overwrite")
        arguments = afresh
        for _ in range(ATTEMPTS):
            moment = 0.9 * (killed + luck.random()) / KILLS  # of the whole file
            size = output.stat().st_size if state_path(output).exists() and output.exists() else 0
            started = commands.start(*arguments)
            wait_for_moment(luck, output, max(moment * len(wanted), size + 1), started)
            started.send()
            status, said = started.wait()
            killed += status == -signal.SIGKILL
            assert status in (0, -signal.SIGKILL), said
            arguments = ("--resume", output, "--save-every", 0.05) if state_path(output).exists() else afresh
            assert_plays(output, seed)
            if killed == KILLS:
                break
        status, said = commands.start(*arguments).wait()
        assert status == 0, said
    assert killed == KILLS
    assert output.read_bytes() == wanted, f"seed {seed}"
    assert not state_path(output).exists()
    one, other = (json.loads((f / "a.mp4.json").read_text()) for f in (whole, tmp_path))
    assert one["applied"] == other["applied"]
    assert [change["chunk"] for change in one["applied"]] == [0, 16, 32]
    assert other["complete"] is True


def test_ctrl_c_finishes_the_chunk_and_the_video_goes_on(checkpoint, whole, tmp_path):
    output = tmp_path / "a.mp4"
    with Commands(tmp_path) as commands:
        started = commands.start(*asked(whole, checkpoint), "-o", output)
        wait_for_size(output, 1000, started)
        started.send(signal.SIGINT)
        status, said = started.wait()
    assert status == 130, said
    assert "Traceback" not in said
    assert f"resume with: vmla-run --resume {output}" in said
    told = json.loads((tmp_path / "a.mp4.json").read_text())
    assert told["complete"] is False
    assert frames_in(output) == told["frames_written"] > 0
    assert frames_in(output) % 12 == 0
    assert (whole / "a.mp4").read_bytes().startswith(output.read_bytes())
    refused = run(*asked(whole, checkpoint), "-o", output)
    assert "vmla-run --resume" in refused.output
    result = run("--resume", output)
    assert result.exit_code == 0, result.output
    assert output.read_bytes() == (whole / "a.mp4").read_bytes()


def test_a_sidecar_repeats_its_video_exactly(whole, tmp_path):
    output = tmp_path / "b.mp4"
    result = run("--repeat", whole / "a.mp4.json", "-o", output)
    assert result.exit_code == 0, result.output
    assert output.read_bytes() == (whole / "a.mp4").read_bytes()
    one, other = (json.loads(path.read_text()) for path in (whole / "a.mp4.json", tmp_path / "b.mp4.json"))
    assert one["applied"] == other["applied"]


def stopped(checkpoint, output, *, seconds=6.0, at=1):
    """A video that was stopped in its beginning."""
    from threading import Event

    stop, order = Event(), new(RED, checkpoint, scale=1, seconds=seconds, seed=3)
    autosave, sink = Autosave(output, order.describe), open_sink(output, scale=1)
    outcome = make_video(order.job, sink, StopAt(stop, at), frames=order.frames, stop=stop, autosave=autosave)
    assert not outcome.complete
    return output


def test_pictures_go_on_exactly(checkpoint, tmp_path):
    one, other = stopped(checkpoint, tmp_path / "one"), tmp_path / "other"
    assert run("--resume", one).exit_code == 0
    length = ("--seconds", 6, "--seed", 3, "--scale", 1)
    assert run("--prompt", RED, "--checkpoint", checkpoint, *length, "-o", other).exit_code == 0
    names = sorted(path.name for path in other.iterdir())
    assert len(names) == 96
    assert names == sorted(path.name for path in one.iterdir())
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.fixture(scope="module")
def half(checkpoint, tmp_path_factory):
    """A copy of the checkpoint, and a video of it that was stopped; read only."""
    folder = tmp_path_factory.mktemp("half")
    shutil.copytree(checkpoint, folder / "model")
    stopped(folder / "model", folder / "a.mp4")
    return folder


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--seed", 4], ["another seed: 3, not 4"]),
        (["--chunks", 20], ["another frames: 96, not 240"]),
        (["--seconds", 2], ["another frames: 96, not 32"]),
        (["--layout", "mha"], ["has layout mla"]),
        (["--dtype", "bfloat16"], ["another dtype: float32, not bfloat16"]),
        (["--steps", 3], ["another sampler.steps: 2, not 3"]),
        (["--scale", 2], ["another scale: 1, not 2"]),
        (["--prompt", BLUE], ["another prompts"]),
        (["--checkpoint", "sprites"], ["another"]),
        (["--engine", "nowhere"], ["nowhere is not an engine"]),
        (["-o", "b.mp4"], ["leave out -o"]),
    ],
    ids=str,
)
def test_other_wishes_are_refused_by_name(half, arguments, fragments):
    before = (half / "a.mp4").read_bytes()
    assert_one_line(run("--resume", half / "a.mp4", *arguments), *fragments)
    assert (half / "a.mp4").read_bytes() == before


def other_weights(folder):
    path = folder / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["proj_out.bias"] += 1
    write_tensors(path, tensors, {})


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def reword(path, old, new):
    content = path.read_bytes()
    quoted = [text.replace(b'"', b'\\"') for text in (old, new)]  # JSON within the file's own JSON
    assert quoted[0] in content
    path.write_bytes(content.replace(*quoted))


DAMAGE = {
    "weights": (other_weights, ["another weights.transformer"]),
    "no checkpoint": (lambda f: shutil.rmtree(f / "model"), ["no checkpoint"]),
    "no state": (lambda f: state_path(f / "a.mp4").unlink(), ["nothing to resume", "--repeat"]),
    "torn": (lambda f: state_path(f / "a.mp4").write_bytes(state_path(f / "a.mp4").read_bytes()[:-40]),
             ["is damaged", "--repeat"]),
    "flipped": (lambda f: flip(state_path(f / "a.mp4"), -5), ["is damaged", "hash"]),
    "foreign": (lambda f: shutil.copy(f / "model/vae/diffusion_pytorch_model.safetensors",
                                      state_path(f / "a.mp4")), ["not the state of a video"]),
    "cut": (lambda f: (f / "a.mp4").write_bytes((f / "a.mp4").read_bytes()[:900]), ["was cut or changed"]),
    "changed": (lambda f: flip(f / "a.mp4", 40), ["was cut or changed"]),
    "changed further on": (lambda f: flip(f / "a.mp4", 3000), ["was cut or changed"]),
    "another seed": (lambda f: reword(state_path(f / "a.mp4"), b'"seed": 3', b'"seed": 4'), ["is damaged"]),
    "gone": (lambda f: (f / "a.mp4").unlink(), ["is missing"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_torn_or_foreign_state_is_refused_and_nothing_lost(half, tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(half, folder)
    text = (folder / "a.mp4.json").read_text().replace(str(half), str(folder))
    (folder / "a.mp4.json").write_text(text)
    moved(folder, str(half), str(folder))
    damage, fragments = DAMAGE[name]
    damage(folder)
    left = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != "a.mp4.json"}
    assert_one_line(run("--resume", folder / "a.mp4"), *fragments)
    kept = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != "a.mp4.json"}
    assert kept == left


def moved(folder, before, after):
    """Let a state name the checkpoint's new place."""
    path = state_path(folder / "a.mp4")
    with safe_open(path, framework="pt") as file:
        text = file.metadata()["state"]
    text = text.replace(before, after)
    metadata = {"state": text, "state_sha256": hashlib.sha256(text.encode()).hexdigest()}
    write_tensors(path, load_file(path), metadata)


def test_a_complete_video_has_nothing_to_go_on_with(whole):
    assert_one_line(run("--resume", whole / "a.mp4"), "is complete")
    assert_one_line(run("--repeat", whole / "nothing.json", "-o", "null"), "nothing.json is missing")
    again = ("--repeat", whole / "a.mp4.json", "-o", "null")
    assert_one_line(run(*again, "--seed", 9), "another seed: 0, not 9")
    (whole / "empty.json").write_text("{}")
    assert_one_line(
        run("--repeat", whole / "empty.json", "-o", "null"),
        "does not describe a video that can be made again: field prompts is missing",
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frames": 10**15}, "field frames is 1000000000000000; input should be less than or equal to"),
        ({"frames": None}, "describes an endless video"),
        ({"frames": -1}, "field frames is -1"),
        ({"frames_per_second": 0}, "field frames_per_second is 0; input should be 16"),
        ({"sampler": {"kind": "renoise", "steps": 1.5}}, "field sampler.steps is 1.5"),
        ({"sampler": {"kind": "renoise", "steps": 10**9}}, "1000000000 denoising steps"),
        ({"prompts": []}, "it has no prompts"),
        ({"prompts": [{"chunk": 0, "prompt": 5, "policy": "keep"}]}, "field prompts[0].prompt is 5"),
        ({"seed": "3"}, "field seed is '3'; input should be a valid integer"),
        ({"threads": True}, "field threads is True"),
        ({"scale": 0}, "field scale is 0"),
        ({"dtype": "object"}, "field dtype is 'object'"),
        ({"checkpoint": "a\0b"}, "no checkpoint"),
        ({"versions": 3}, "field versions is 3"),
    ],
    ids=str,
)
def test_a_sidecar_whose_values_cannot_be_is_refused_before_anything_is_written(
    whole, tmp_path, changes, said
):
    values = json.loads((whole / "a.mp4.json").read_text())
    (tmp_path / "odd.json").write_text(json.dumps({**values, **changes}))
    assert_one_line(run("--repeat", tmp_path / "odd.json", "-o", tmp_path / "b.mp4"), said)
    assert [path.name for path in tmp_path.iterdir()] == ["odd.json"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "memory",
    [None, [], [torch.randn(1, 2, 3), "Rep", None, torch.randn(2)[:1]]],
    ids=["none", "empty", "some"],
)
def test_a_state_comes_back_as_it_went(tmp_path, dtype, memory):
    snapshot = Snapshot(
        number=7, frame=7, forgotten=3,
        cache=torch.randn(2, 1, 8, 5).to(dtype), past={0: torch.randn(1, 2), 6: torch.randn(1, 2)},
    )  # fmt: skip
    state = State(snapshot=snapshot, decoder_state=memory, mark={"frames": 84, "bytes": 10**12})
    save_state(tmp_path / "s", state, {"seed": 3})
    again, video = load_state(tmp_path / "s", mend="")
    assert video == {"seed": 3}
    assert (again.mark, again.snapshot.frame, again.snapshot.forgotten) == (state.mark, 7, 3)
    assert torch.equal(again.snapshot.cache, snapshot.cache)
    assert again.snapshot.cache.dtype == dtype
    assert again.snapshot.past.keys() == {0, 6}
    assert (again.decoder_state is None) == (memory is None)
    for one, other in zip(again.decoder_state or [], memory or [], strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_state_is_whole_though_the_next_one_takes_its_place_while_it_is_read(tmp_path, monkeypatch):
    def save(number):
        snapshot = Snapshot(number=number, frame=0, forgotten=0, cache=torch.full((9,), number), past={})
        save_state(tmp_path / "s", State(snapshot=snapshot, decoder_state=None, mark={"frames": 0}), {})

    def read_header(*arguments, **options):
        header = usual(*arguments, **options)
        save(2)
        return header

    usual = state_file.header_in
    monkeypatch.setattr(state_file, "header_in", read_header)
    save(1)
    seen = [load_state(tmp_path / "s", mend="")[0].snapshot for _ in range(2)]
    assert [(each.number, each.cache[0].item()) for each in seen] == [(1, 1), (2, 2)]


def test_states_that_count_in_chunks_are_read_and_new_ones_mean_the_same_to_who_counts_so(tmp_path):
    """Once a position was whole chunks since the history was dropped and the sink's frames before those."""
    path, video = tmp_path / "s", {"window": {"sink": 1, "history": 3, "chunk": 3}}
    snapshot = Snapshot(number=9, frame=7, forgotten=7, cache=torch.randn(2), past={})
    save_state(path, State(snapshot=snapshot, decoder_state=None, mark={"frames": 0}), video)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["state"])
    chunks, ahead = header["position"]
    assert ahead + chunks * 3 == 7
    old = json.dumps({**header, "position": [2, 1]})
    write_tensors(path, load_file(path), {"state": old})
    assert load_state(path, mend="")[0].snapshot.frame == 7


def test_states_are_not_asked_for_faster_than_they_are_written(tmp_path):
    autosave = Autosave(tmp_path / "a.mp4", dict, every=0.0)
    assert autosave.due()
    assert not autosave.due()  # the first is still on its way
    state = State(
        snapshot=Snapshot(number=0, frame=0, forgotten=0, cache=torch.randn(2), past={}),
        decoder_state=None,
        mark={"frames": 0},
    )
    with autosave:
        autosave.save(state)
    assert autosave.due()
    assert autosave.saved
    slow = Autosave(tmp_path / "a.mp4", dict, every=60.0)
    assert slow.due()
    with slow:
        slow.save(state)
    assert not slow.due()


def test_an_order_to_go_on_holds_the_state(half):
    order = resume(half / "a.mp4", {})
    assert order.state.mark["frames"] == 12 * order.state.snapshot.number
    assert order.changed == ()
    with pytest.raises(UserError, match="another seed"):
        resume(half / "a.mp4", {"seed": 1})
