"""The door of a session: videos let in, paused, stopped and taken along from any thread while it runs."""

import pickle
import random
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.processes.galleries import Gallery, Stalling

from plugins.errors import UserError
from runtime.outputs import NullSink
from runtime.planning.request import prepare
from runtime.prompts.sources import FixedPrompts, LivePrompts, PromptChange, PromptSchedule
from runtime.resume.state import State
from runtime.session.commands import CommandQueue
from runtime.session.session import Session

pytestmark = pytest.mark.cpu

RED, BLUE = "a red star bouncing on a navy background", "a blue ring resting on a gray background"
CHUNKS = 6
ENOUGH = 120
"""Seconds after which something must have happened, on a machine however busy."""


@pytest.fixture(scope="module")
def job(checkpoint):
    return prepare(RED, checkpoint, chunks=CHUNKS)[0]


@pytest.fixture(scope="module")
def wanted(job):
    """The frames of a seed that nothing disturbs, made once for each."""
    made = {}

    def of(seed):
        if seed not in made:
            made[seed] = whole(replace(job, seed=seed))
        return made[seed]

    return of


def whole(job):
    sink = Gallery()
    with Session(job) as session:
        session.admit(job, sink, frames=12 * job.chunks)
        session.run()
    return sink.pixels()


class Serving:
    """A session that is served on a thread of its own, until the `with` block is left."""

    def __init__(self, job, **more):
        self._session = Session(job, **more)
        self._thread = threading.Thread(target=self._session.serve)

    def __enter__(self):
        self._thread.start()
        return self._session.__enter__()

    def __exit__(self, *error):
        self._session.__exit__(*error)
        self._thread.join(ENOUGH)
        assert not self._thread.is_alive()


def until(true):
    end = time.monotonic() + ENOUGH
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_commands_run_in_order_one_at_a_time_and_never_during_a_turn():
    commands, inside, ran = CommandQueue(), [], []

    def command(thread, number):
        assert not inside
        inside.append(thread)
        ran.append((thread, number))
        inside.pop()

    def give(thread):
        for number in range(200):
            commands.post(lambda number=number: command(thread, number))

    threads = [threading.Thread(target=give, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        with commands.exclusive():
            inside.append("turn")
            time.sleep(0.0001)
            inside.pop()
    for thread in threads:
        thread.join(ENOUGH)
    assert len(ran) == 800
    for thread in range(4):
        assert [number for one, number in ran if one == thread] == list(range(200))


def test_a_command_wakes_who_waits_and_none_is_lost():
    commands, ran = CommandQueue(), threading.Event()
    with commands.exclusive():
        commands.post(ran.set)
        assert not ran.is_set()
    assert ran.is_set()
    began = time.monotonic()
    threading.Timer(0.05, lambda: commands.post(lambda: None)).start()
    with commands.exclusive():
        pass
    commands.wait(ENOUGH)
    assert time.monotonic() - began < ENOUGH / 2


def test_four_threads_steer_a_session_while_it_runs(job, wanted):
    """Whatever is done to the others, a video that is let be is what it is alone."""
    kept, failures = [], []

    def steer(session, luck):
        try:
            for turn in range(5):
                seed, sink = luck.randrange(3), Gallery()
                one = replace(job, seed=seed)
                if turn % 2:
                    task = session.admit(one, sink, frames=12 * CHUNKS)
                    kept.append((seed, sink, task))
                    for act in luck.choices([task.pause, task.resume, task.snapshot], k=4):
                        act()
                    task.resume()
                else:
                    task = session.admit(one, sink, frames=None)
                    luck.choice([task.cancel, task.end])()
                    task.pause()
                    assert task.wait(ENOUGH)
        except BaseException as error:
            failures.append(error)
            raise

    with Serving(job) as session:
        threads = [threading.Thread(target=steer, args=(session, random.Random(n))) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(ENOUGH)
        assert not failures
        assert len(kept) == 8
        for seed, sink, task in kept:
            assert task.wait(ENOUGH)
            assert task.failure is None
            assert np.array_equal(sink.pixels(), wanted(seed))


def test_a_paused_video_is_not_made_and_holds_up_nobody(job, wanted):
    with Session(job) as session:
        sinks = [Gallery(), Gallery()]
        one, other = (session.admit(job, sink, frames=12 * CHUNKS) for sink in sinks)
        assert session.step() is one
        one.pause()
        assert one.status == "paused"
        session.run()
        assert (one.made, other.status) == (1, "ended")
        one.resume()
        session.run()
    assert all(np.array_equal(sink.pixels(), wanted(0)) for sink in sinks)


def test_after_a_pause_a_video_is_due_as_if_its_viewer_had_paused_too(job):
    with Session(job, clock=iter([0.0, 0.0, 100.0]).__next__) as session:
        task = session.admit(job, NullSink(), frames=12 * CHUNKS)
        session.step()
        before = task.deadline
        task.pause()
        task.resume()
        assert task.deadline == before + 100.0
        task.cancel()


def test_an_endless_video_goes_on_until_it_is_cancelled(job, wanted):
    sink = Gallery()
    with Serving(job) as session:
        task = session.admit(job, sink, frames=None)
        until(lambda: task.made > 2 * CHUNKS)
        assert task.status == "running"
        task.cancel()
        assert task.wait(ENOUGH)
    assert task.failure is None
    assert not task.producer.complete
    count = min(12 * CHUNKS, len(sink.pixels()))
    assert np.array_equal(sink.pixels()[:count], wanted(0)[:count])


def test_a_video_that_is_ended_leaves_all_that_was_made_and_a_cancelled_one_does_not(job):
    for act, kept in (("end", True), ("cancel", False)):
        sink = Stalling()
        with Session(job) as session:
            task = session.admit(job, sink, frames=12 * CHUNKS)
            for _ in range(3):
                session.step()
            assert sink.waiting.wait(ENOUGH)
            getattr(task, act)()
            sink.gate.set()
            assert task.wait(ENOUGH)
        assert (task.frames == 36) == kept


def test_a_sink_that_takes_nothing_holds_up_no_other_video_and_can_be_cancelled(job, wanted):
    stalled, sink = Stalling(), Gallery()
    with Serving(job) as session:
        stuck = session.admit(job, stalled, frames=None)
        until(lambda: stuck.producer.blocked)
        other = session.admit(job, sink, frames=12 * CHUNKS)
        assert other.wait(ENOUGH)
        assert np.array_equal(sink.pixels(), wanted(0))
        stuck.cancel()
        until(lambda: stuck.status == "ending")
        stalled.gate.set()
        assert stuck.wait(ENOUGH)


class Broken(NullSink):
    def write(self, frames):
        raise OSError(32, "Broken pipe")


def test_what_fails_while_it_is_paused_is_noticed(job):
    with Session(job) as session:
        task = session.admit(job, Broken(), frames=12 * CHUNKS)
        session.step()
        task.pause()
        assert task.wait(ENOUGH)
        assert isinstance(task.failure, OSError)
        with pytest.raises(UserError, match="ended early"):
            task.snapshot()


def test_a_closed_session_lets_nobody_in_and_ends_what_it_makes(job):
    with Serving(job) as session:
        task = session.admit(job, NullSink(), frames=None)
    assert task.status == "ended"
    with pytest.raises(UserError, match="the session is closed"):
        session.admit(job, NullSink(), frames=None)


# States.


def switching(job):
    """The job with three prompts, of which one begins where the state is taken and one later."""
    changes = [(0, RED, "recache"), (3, BLUE, "recache"), (5, RED, "reset")]
    return replace(
        job,
        seed=4,
        prompts=PromptSchedule(
            [PromptChange(chunk=n, prompts=(p,), policy=policy) for n, p, policy in changes]
        ),
    )


def stopped_after(job, chunks, *, frames=12 * CHUNKS):
    """The first chunks of `job`, and the state then."""
    sink = Gallery()
    with Session(job) as session:
        task = session.admit(job, sink, frames=frames)
        for _ in range(chunks):
            session.step()
        state = task.snapshot()
        task.cancel()
    return sink.pixels()[: state.mark["frames"]], state


@pytest.mark.parametrize("chunks", [0, 1, 3, 5])
def test_a_state_goes_on_in_the_same_and_in_another_session_as_if_never_stopped(job, chunks):
    job = switching(job)
    sinks = [Gallery(), Gallery(), Gallery()]
    with Session(job) as session:
        task = session.admit(job, sinks[0], frames=12 * CHUNKS)
        for _ in range(chunks):
            session.step()
        state = pickle.loads(pickle.dumps(task.snapshot()))
        assert state.snapshot.number == chunks
        session.restore(state, sinks[1])
        session.run()
    with Session(replace(job, prompts=FixedPrompts(BLUE), seed=9)) as session:
        session.restore(state, sinks[2])
        session.run()
    rest = sinks[0].pixels()[12 * chunks :]
    assert np.array_equal(sinks[1].pixels(), rest)
    assert np.array_equal(sinks[2].pixels(), rest)
    assert np.array_equal(sinks[0].pixels(), whole(job))


GO_ON = """
import sys
import numpy as np
sys.path.insert(0, {tests!r})
from kit.processes.galleries import Gallery
from runtime.planning.request import prepare
from runtime.resume.state import State
from runtime.session.session import Session
job, sink = prepare("anything", {checkpoint!r})[0], Gallery()
with Session(job) as session:
    session.restore(State.load({folder!r} / __import__("pathlib").Path("state")), sink)
    session.run()
np.save({folder!r} + "/rest.npy", sink.pixels())
"""


def test_a_state_on_disk_goes_on_in_another_process(job, checkpoint, tmp_path):
    job = switching(job)
    first, state = stopped_after(job, 4)
    state.save(tmp_path / "state")
    tests = str(Path(__file__).parents[2])
    code = GO_ON.format(tests=tests, checkpoint=str(checkpoint), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    both = np.concatenate([first, np.load(tmp_path / "rest.npy")])
    assert np.array_equal(both, whole(job))


def test_a_batch_is_stopped_and_goes_on_together(job, wanted):
    sinks = [Gallery() for _ in range(3)]
    with Session(job) as session:
        tasks = [session.admit(replace(job, seed=seed), sinks[seed], frames=12 * CHUNKS) for seed in range(3)]
        for _ in range(7):
            session.step()
        states = [task.snapshot() for task in tasks]
        for task in tasks:
            task.end()
    assert len({state.snapshot.number for state in states}) > 1
    with Session(job) as session:
        for state, sink in zip(states, sinks, strict=True):
            session.restore(state, sink)
        session.run()
    for seed, sink in enumerate(sinks):
        assert np.array_equal(sink.pixels(), wanted(seed))


def test_the_state_of_an_endless_video_is_endless(job, wanted):
    first, state = stopped_after(job, 2, frames=None)
    sink = Gallery()
    with Serving(job) as session:
        task = session.restore(state, sink)
        until(lambda: task.made > CHUNKS)
        assert task.status == "running"
        task.end()
        assert task.wait(ENOUGH)
    both = np.concatenate([first, sink.pixels()])
    assert np.array_equal(both[: 12 * CHUNKS], wanted(0))


def test_live_prompts_go_on_with_what_was_asked_for_and_stay_live(job):
    live, sinks = LivePrompts(RED), [Gallery(), Gallery()]
    one = replace(job, prompts=live)
    with Session(job) as session:
        task = session.admit(one, sinks[0], frames=12 * CHUNKS)
        for _ in range(2):
            session.step()
        live.change(BLUE)  # asked for, not yet applied
        state = task.snapshot()
        again = session.restore(state, sinks[1])
        session.run()
        assert np.array_equal(sinks[0].pixels()[24:], sinks[1].pixels())
        assert [change.chunk for change in again.producer.job.prompts.changes] == [0, 2]
        assert isinstance(again.producer.job.prompts, LivePrompts)


def test_a_state_of_something_else_is_refused(job):
    _, state = stopped_after(job, 1)
    other = replace(state, video={**state.video, "weights": {"transformer": "0" * 64}})
    with Session(job) as session:
        with pytest.raises(UserError, match="this state was made with another weights.transformer"):
            session.restore(other, NullSink())
        with pytest.raises(UserError, match="does not describe its video"):
            session.restore(replace(state, video={}), NullSink())
        session.restore(state, NullSink()).cancel()
    assert state.snapshot.cache.device == torch.device("cpu")
    assert isinstance(state, State)
