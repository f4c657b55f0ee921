"""When chunks are wanted, and who comes first: pure functions of a clock and of viewers."""

from dataclasses import replace

import pytest
from kit.processes.serving import BLUE, RED

from runtime.outputs import NullSink
from runtime.planning.request import prepare
from runtime.prompts.sources import LivePrompts, PromptChange
from runtime.serve.streams.events import Events
from runtime.serve.streams.pacing import PATIENCE_SECONDS, BackgroundPacing, LivePacing
from runtime.serve.streams.viewer import LEAD, Viewer
from runtime.session.session import Session

pytestmark = pytest.mark.cpu

SECONDS = 0.75


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def pacing_of(clock, missed=lambda: None):
    return LivePacing(chunk_seconds=SECONDS, clock=clock, missed=missed)


def viewer_of(clock, number=0, **asked):
    asked = {"endless": False, "chunk_seconds": SECONDS, **asked}
    return Viewer(next=number, clock=clock, **asked)


def test_a_viewer_is_given_a_few_chunks_ahead_of_what_it_took():
    clock = Clock()
    pacing, viewer = pacing_of(clock), viewer_of(clock)
    pacing.watch([viewer], idle=LEAD)
    assert [pacing.wanted(made) for made in (0, LEAD - 1, LEAD)] == [True, True, False]
    viewer.next = 5
    assert pacing.wanted(4 + LEAD)


def test_the_foremost_viewer_counts_and_without_any_the_first_chunks_alone():
    clock = Clock()
    pacing = pacing_of(clock)
    pacing.watch([viewer_of(clock, 2), viewer_of(clock, 9)], idle=LEAD)
    assert pacing.wanted(11)
    assert not pacing.wanted(12)
    pacing.watch([], idle=LEAD)
    assert pacing.wanted(2)
    assert not pacing.wanted(11)


def test_a_player_that_says_where_it_is_never_goes_back():
    clock = Clock()
    viewer = viewer_of(clock, buffer_seconds=1.5)
    assert viewer.limit() == 2
    viewer.next = 10
    viewer.played(3.0)
    assert viewer.limit() == 6
    viewer.played(1.0)
    assert viewer.limit() == 6


def test_an_endless_stream_keeps_to_the_clock():
    clock = Clock()
    viewer = viewer_of(clock, 100, endless=True)
    viewer.next = 1_000
    assert viewer.limit() == 104
    clock.now = 7.5
    assert viewer.limit() == 114


def test_a_deadline_follows_what_is_made_and_is_missed_by_who_was_kept_waiting_alone():
    clock, missed = Clock(), []
    pacing = pacing_of(clock, lambda: missed.append(clock.now))
    viewer = viewer_of(clock)
    pacing.watch([viewer], idle=LEAD)
    assert pacing.deadline(0) == SECONDS
    assert pacing.deadline(2) == 1.5
    assert pacing.deadline(2) == 1.5
    clock.now = 10.0  # nothing was wanted meanwhile: nobody waited
    assert not pacing.wanted(3)
    assert pacing.deadline(3) == 10.75
    assert missed == []
    viewer.next = 3
    assert pacing.wanted(3)
    clock.now = 13.0  # this was wanted, and came late
    assert pacing.deadline(4) == 13.75
    assert missed == [13.0]


def served(streams, *, until, opening, chunk):
    """When each stream has its chunks, of which the first takes `opening` seconds and each other `chunk`."""
    clock, late = Clock(), []
    pacings = [pacing_of(clock, lambda: late.append(clock.now)) for _ in range(streams)]
    viewers = [viewer_of(clock, endless=True) for _ in range(streams)]
    for pacing, viewer in zip(pacings, viewers, strict=True):
        pacing.watch([viewer], idle=LEAD)
    made = [[] for _ in range(streams)]
    while clock.now < until:
        due = [n for n in range(streams) if pacings[n].wanted(len(made[n]))]
        if not due:
            clock.now += 0.01
            continue
        first = min(due, key=lambda n: (pacings[n].deadline(len(made[n])), n))
        clock.now += chunk if made[first] else opening
        made[first].append(clock.now)
        viewers[first].next = len(made[first])
    return made, late


def test_streams_that_play_do_not_stall_while_others_begin():
    made, late = served(6, until=20.0, opening=0.5, chunk=0.05)
    assert late == []
    for times in made:
        ready = [times[0] + SECONDS * number for number in range(len(times))]
        assert all(time <= played for time, played in zip(times, ready, strict=True))
    assert max(times[0] for times in made) < PATIENCE_SECONDS


def test_a_first_chunk_is_made_even_if_there_is_never_time_for_it():
    made, _ = served(6, until=30.0, opening=1.0, chunk=0.4)  # each second brings three seconds of work
    assert max(times[0] for times in made) < PATIENCE_SECONDS + 6 * (1.0 + 0.4 * LEAD)


def test_who_watches_goes_before_jobs_and_unwanted_chunks_are_not_made(checkpoint):
    job, _ = prepare(RED, checkpoint, chunks=3, threads=1)
    clock = Clock()
    live, viewer = pacing_of(clock), viewer_of(clock)
    live.watch([viewer], idle=LEAD)
    order = []
    with Session(job, clock=clock) as session:
        jobs = [
            session.admit(
                replace(job, seed=seed), NullSink(), frames=36, pacing=BackgroundPacing(chunk_seconds=SECONDS)
            )
            for seed in (1, 2)
        ]
        watched = session.admit(job, NullSink(), frames=None, pacing=live)
        while not all(task.over for task in jobs):
            order.append(session.step().number)
        assert watched.made == LEAD  # and no more until somebody takes them
        watched.cancel()
    assert order == [2] * LEAD + [0, 1] * 3


def test_prompts_that_are_known_to_come_begin_at_their_chunks_and_requests_wait_for_them():
    changes = [PromptChange(chunk=0, prompts=(RED,)), PromptChange(chunk=5, prompts=(BLUE,))]
    prompts = LivePrompts.continued(changes)
    assert prompts.at(4).prompts == (RED,)
    receipt = prompts.change("a green cross")
    assert [change.chunk for change in prompts.known_before(5)] == [0, 5, 6]
    assert prompts.at(5).prompts == (BLUE,)
    assert receipt.chunk is None
    assert prompts.at(6).prompts == ("a green cross",)
    assert (receipt.chunk, prompts.at(7).chunk) == (6, 6)


def test_a_request_that_another_one_replaced_is_named_where_that_takes_effect():
    prompts, events, told = LivePrompts(RED), Events(), []

    def heard(state, receipt):
        if state == "superseded":
            events.supersede(receipt)
        if state == "applied":
            told.append(events.apply(receipt, receipt.chunk))

    prompts.listen(heard)
    prompts.at(0)
    for name in ("one", "two"):
        events.expect(prompts.change(BLUE), name)
    prompts.at(1)
    assert told == [("two",)]
    assert events.superseded == {1: ["one"]}
