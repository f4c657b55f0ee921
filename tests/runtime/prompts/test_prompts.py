"""Prompts over time: each policy equals the same thing done by hand; schedules and live changes say so."""

import os
import re
import threading

import pytest
import torch
from click.testing import CliRunner
from kit.measure import assert_close, seconds

from plugins.errors import UserError
from runtime.cli.run import main
from runtime.engines.base import EagerEngine
from runtime.prompts.schedule_file import ScheduleEntry, read_schedule, to_schedule
from runtime.prompts.sources import FixedPrompts, LivePrompts, PromptChange, PromptSchedule
from runtime.rollout.decoding import NoDecoder
from runtime.rollout.rollout import Rollout, rollout
from vmla.cache import ChunkLengths
from vmla.scheduler import Sampler, keyed_noise
from vmla.transformer import StepInputs
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

RED, BLUE = "a red star bouncing on a navy background", "a blue ring resting on a gray background"
SWITCH, CHUNKS, SEED = 3, 5, 5
SAMPLER = Sampler(kind="euler", steps=2)


@pytest.fixture(scope="module")
def engine(checkpoint):
    opened = open_checkpoint(checkpoint)
    cpu = torch.device("cpu")
    return EagerEngine(opened.transformer(), opened.text(), device=cpu, dtype=torch.float32)


def switched(policy, at=SWITCH):
    return PromptSchedule(
        [PromptChange(chunk=0, prompts=(RED,)), PromptChange(chunk=at, prompts=(BLUE,), policy=policy)]
    )


def latents_of(engine, prompts, chunks=CHUNKS):
    made = rollout(engine, NoDecoder(), prompts, SAMPLER, seeds=[SEED], chunks=chunks)
    return [chunk.frames.transpose(1, 2) for chunk in made]


class ByHand:
    """The method written out once more: a list of entries by frame, and positions worked out from it."""

    def __init__(self, engine):
        self.engine, self.cache_spec = engine, engine.cache_spec
        self.sink, self.ring = [], []

    def window(self):
        """The cache as it is, and the indices of what it holds and of the chunk itself."""
        held = self.sink + self.ring[len(self.ring) - min(len(self.ring), self.cache_spec.history) :]
        empty = torch.zeros(self.engine.config.num_layers, 1, 0, self.cache_spec.entry_width)
        own = torch.arange(len(held), len(held) + self.cache_spec.chunk)
        return torch.cat([empty, *held], dim=2), torch.arange(len(held)).int(), own.int()

    def chunk(self, number, prompt):
        text, (cache, *indices) = self.engine.encode_prompt([prompt]), self.window()
        x = keyed_noise((4, self.cache_spec.chunk, 8, 8), seed=SEED, chunk=number, step=0)[None]
        sigmas = SAMPLER.sigmas()
        for sigma, below in zip(sigmas[:-1], sigmas[1:], strict=True):
            t = torch.full((1, self.cache_spec.chunk), float(sigma) * 1000)
            x = x + (below - sigma) * self.engine.step(StepInputs(x, t, text, cache, *indices))[0]
        return x

    def commit(self, latents, prompt):
        text, (cache, *indices) = self.engine.encode_prompt([prompt]), self.window()
        clean = torch.zeros(1, self.cache_spec.chunk)
        _, entries = self.engine.step(StepInputs(latents, clean, text, cache, *indices))
        for frame in entries.split(self.cache_spec.tokens_per_frame, dim=2):
            (self.sink if len(self.sink) < self.cache_spec.sink else self.ring).append(frame)


def by_hand(engine, policy):
    made, hand = [], ByHand(engine)
    for number in range(CHUNKS):
        if number == SWITCH and policy == "reset":
            hand.ring = []
        if number == SWITCH and policy == "recache":
            hand = ByHand(engine)  # debug: a sink of one frame, a ring of one chunk
            for latents in (made[0], made[SWITCH - 1]):
                hand.commit(latents, BLUE)
        prompt = RED if number < SWITCH else BLUE
        made.append(hand.chunk(number, prompt))
        hand.commit(made[-1], prompt)
    return made


@pytest.mark.parametrize("policy", ["keep", "recache", "reset"])
def test_each_policy_equals_the_same_thing_done_by_hand(engine, policy):
    for made, wanted in zip(latents_of(engine, switched(policy)), by_hand(engine, policy), strict=True):
        assert_close(made, wanted, rtol=0, atol=1e-4)


def test_the_policies_differ_and_change_nothing_before_the_edge(engine):
    same = latents_of(engine, FixedPrompts(RED))
    made = {policy: latents_of(engine, switched(policy)) for policy in ("keep", "recache", "reset")}
    for latents in made.values():
        assert all(torch.equal(a, b) for a, b in zip(latents[:SWITCH], same, strict=False))
        assert (latents[SWITCH] - same[SWITCH]).abs().max() > 1e-4
    assert (made["keep"][SWITCH] - made["recache"][SWITCH]).abs().max() > 1e-5
    assert (made["keep"][SWITCH] - made["reset"][SWITCH]).abs().max() > 1e-5


@pytest.mark.parametrize("at", [1, 2, 3])
def test_recaching_under_the_same_prompt_changes_next_to_nothing_while_no_chunk_has_left(engine, at):
    """The same passes over the same latents: until a chunk has left the window, exactly what is there."""
    again = PromptSchedule(
        [PromptChange(chunk=0, prompts=(RED,)), PromptChange(chunk=at, prompts=(RED,), policy="recache")]
    )
    videos = Rollout(engine, again, SAMPLER, seeds=[SEED])
    for _ in range(at):
        videos.denoise()
        videos.update_cache()
    before, frame = videos.buffers.cache.clone(), videos.frame
    videos.denoise()
    # The debug window holds chunk 0's first frame and the newest chunk: two chunks, from number 2 on.
    assert videos.frame == (frame if at <= 2 else 6)
    if at <= 2:
        assert torch.equal(videos.buffers.cache, before)


def test_a_reset_and_a_recache_after_it_keep_to_the_sink_and_what_came_since(engine):
    changes = [(0, RED, "keep"), (3, BLUE, "reset"), (4, RED, "recache")]
    prompts = PromptSchedule([PromptChange(chunk=c, prompts=(p,), policy=how) for c, p, how in changes])
    videos = Rollout(engine, prompts, SAMPLER, seeds=[SEED])
    for _ in range(5):
        videos.denoise()
        videos.update_cache()
    assert videos.frame == 1 + 2 * 3  # the sink, and two chunks since
    assert sorted(videos.past.chunks) == [0, 4]


def test_a_live_change_is_acknowledged_twice_and_applied_at_the_next_edge(engine):
    heard, live = [], LivePrompts(RED)
    live.listen(lambda state, receipt: heard.append((state, receipt.number, receipt.chunk)))
    made = []
    for chunk in rollout(engine, NoDecoder(), live, SAMPLER, seeds=[SEED], chunks=CHUNKS):
        made.append(chunk.frames.transpose(1, 2))
        if chunk.number == SWITCH - 1:
            superseded = live.change(RED, policy="reset")
            receipt = live.change(BLUE, policy="keep")
            assert receipt.chunk is None
    assert (receipt.wait(0), superseded.wait(0)) == (SWITCH, None)
    assert heard == [("accepted", 1, None), ("accepted", 2, None), ("superseded", 1, None),
                     ("applied", 2, SWITCH)]  # fmt: skip
    wanted = latents_of(engine, switched("keep"))
    assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))
    assert list(live.changes) == list(switched("keep").changes)


def test_a_change_from_another_thread_is_waited_for(engine):
    live, seen = LivePrompts(RED), []
    thread = threading.Thread(target=lambda: seen.append(live.change(BLUE).wait(60)))
    thread.start()
    for number in range(100_000):
        live.at(number)
        if seen:
            break
    thread.join()
    assert live.changes[-1].chunk == seen[0]
    with pytest.raises(UserError, match="the prompt is empty"):
        live.change("  ")
    with pytest.raises(UserError, match="no such policy"):
        live.change(RED, policy="forget")


def test_a_schedule_tells_of_what_it_applies():
    heard, schedule = [], switched("recache")
    schedule.listen(lambda state, receipt: heard.append((state, receipt.number, receipt.chunk)))
    for number in range(CHUNKS):
        schedule.at(number)
    assert heard == [("accepted", 1, SWITCH), ("applied", 1, SWITCH)]


FILES = {
    "a.yaml": f"0: {RED}\n1.5: {{prompt: {BLUE}, policy: reset}}\n",
    "b.yml": f"- {{at: 0, prompt: {RED}}}\n- at: 1.5\n  prompt: {BLUE}\n  policy: reset\n",
    "c.jsonl": f'{{"at": 0, "prompt": "{RED}"}}\n\n{{"at": 1.5, "prompt": "{BLUE}", "policy": "reset"}}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_every_way_to_write_a_schedule_is_read_alike(tmp_path, checkpoint, name):
    (tmp_path / name).write_text(FILES[name])
    entries = read_schedule(tmp_path / name)
    assert entries == [ScheduleEntry(at=0.0, prompt=RED), ScheduleEntry(at=1.5, prompt=BLUE, policy="reset")]
    codec = open_checkpoint(checkpoint).codec(weights=False)
    lengths = ChunkLengths(first=3, following=3)
    # Chunks of twelve frames: at 0, 0.75 and 1.5 s, and so on.
    schedule = to_schedule(entries, chunks=4, lengths=lengths, codec=codec)
    assert schedule.changes == switched("reset", at=2).changes


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (f"0: {RED}\n2: {BLUE}\n1: {RED}\n", ["out of order", "1 s comes after one at 2 s"]),
        (f"0: {RED}\n0.8: {BLUE}\n1.4: {RED}\n", ["overlap", "0.8 s and 1.4 s"]),
        (f"0: {RED}\n0: {BLUE}\n", ["line 2: the key 0 stands there twice"]),
        (f"0: {RED}\n99: {BLUE}\n", ["past the last chunk"]),
        (f"1: {RED}\n", ["no prompt begins at 0 s"]),
        (f"-1: {RED}\n", ["out of order"]),
        (f".nan: {RED}\n", ["nan: the number is not finite"]),
        ("", ["holds no prompt"]),
        ("hello", ["no list of prompts"]),
        ("0: [", ["not valid YAML"]),
        (f"soon: {RED}\n", ["entry 1: field at is 'soon'; input should be a valid number"]),
        ("0: 5\n", ["field prompt is 5; input should be a valid string"]),
        ("0: ''\n", ["the prompt is empty"]),
        (f"- {{at: 0, prompt: {RED}, colour: red}}\n", ["entry 1: field colour is unknown"]),
        (
            f"- {{at: 0, prompt: {RED}, policy: forget}}\n",
            ["field policy is 'forget'; input should be 'keep', 'recache' or 'reset'"],
        ),
        (f"0: {RED}\n2024-13-45: {BLUE}\n", ["entry 2: field at is '2024-13-45'"]),
        (f"0: {RED}\n2024-02-03: {BLUE}\n", ["entry 2: field at is '2024-02-03'"]),
        ("0: !!python/object/apply:os.getcwd []\n", ["line 1 has the tag", "which is not read here"]),
        ("0: &a red\n1: *a\n", ["line 1 has an anchor or alias"]),
        ("0: " + "[" * 500 + "]" * 500, ["line 1 is nested more than 32 deep"]),
        ("0: " + "[" * 100_000, ["not valid YAML"]),
        ("0: red\x00star\n", ["control characters are not allowed"]),
        ("0: red\x1b[2Jstar\n", ["control characters are not allowed"]),
        (f"{'9' * 5000}: {RED}\n", ["line 1 has a number of 5000 characters"]),
        (f"0: {RED}\n--- \n1: {BLUE}\n", ["more than one document"]),
    ],
    ids=lambda value: str(value)[:40].encode("unicode_escape").decode(),
)
def test_a_schedule_that_cannot_be_is_refused_in_one_line(checkpoint, tmp_path, text, fragments):
    file, output = tmp_path / "prompts.yaml", tmp_path / "a.mp4"
    file.write_text(text)
    arguments = ["--prompts", file, "--checkpoint", checkpoint, "--seconds", 6, "-o", output]
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 2, result.output
    assert len(result.output.splitlines()) == 1, result.output
    for fragment in fragments:
        assert fragment in result.output
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "is not UTF-8 text: byte 0"),
        (b'{"at": 0, "prompt": "a", "at": 1}', "line 1 is not valid JSON: the key at stands there twice"),
        (b'{"at": NaN, "prompt": "a"}', "line 1 is not valid JSON: NaN is not a number"),
        (b'{"at": 1e999, "prompt": "a"}', "line 1: at: the number is not finite"),
        (b"[" * 100_000, "line 1 is nested more than 32 deep"),
    ],
    ids=["no UTF-8", "double", "NaN", "infinite", "deep"],
)
def test_json_lines_that_cannot_be_are_refused(tmp_path, content, said):
    (tmp_path / "prompts.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        read_schedule(tmp_path / "prompts.jsonl")
    assert "\n" not in str(caught.value)


def test_a_mark_of_the_byte_order_is_no_text(tmp_path):
    (tmp_path / "prompts.yaml").write_bytes(b"\xef\xbb\xbf0: a red star\n")
    assert read_schedule(tmp_path / "prompts.yaml") == [ScheduleEntry(at=0.0, prompt="a red star")]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "prompts.yaml")
    with pytest.raises(UserError, match="is not a regular file"):
        read_schedule(tmp_path / "prompts.yaml")


def test_a_long_file_takes_a_time_in_proportion(tmp_path, checkpoint):
    """Ten times the lines; what took the square of their number would take a hundred times as long."""
    codec, file = open_checkpoint(checkpoint).codec(weights=False), tmp_path / "prompts.yaml"

    def read(count):
        lengths = ChunkLengths(first=3, following=3)
        schedule = to_schedule(read_schedule(file), chunks=2 * count, lengths=lengths, codec=codec)
        assert [schedule.at(n).chunk <= n for n in range(2 * count)] == [True] * 2 * count

    taken = []
    for count in (500, 5_000):
        file.write_text("".join(f"{n}: a red star, the {n}th\n" for n in range(count)))
        taken.append(seconds(lambda count=count: read(count)))
    assert taken[1] < 40 * taken[0]
