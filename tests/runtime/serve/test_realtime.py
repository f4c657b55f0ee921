"""`/v1/realtime/video` as vLLM-Omni's clients speak it: changes of prompt, slow and lost viewers."""

import time
from contextlib import suppress
from itertools import pairwise

import av
import numpy as np
import pytest
from kit.processes.serving import BLUE, ENOUGH, RED, serving, wait_for
from websockets.exceptions import ConnectionClosed

from runtime.prompts.sources import PromptChange, PromptSchedule

pytestmark = pytest.mark.cpu


def change(viewer, prompt, *, name, **also):
    event = {"event_id": name, "event": {"prompt": prompt}, "transition_chunks": 2, **also}
    viewer.send({"type": "session.interaction", "interaction": event})


def test_a_client_of_vllm_omni_gets_a_whole_video(server, reference):
    # The fields that its example client sends, sizes of another model included.
    asked = {"model": "debug", "prompt": RED, "width": 640, "height": 384, "fps": 16, "num_frames": 60}
    with server.watch(**asked, guidance_scale=1.0, seed=3, extra_params={"is_enable_stage2": True}) as viewer:
        start = viewer.next()
        viewer.all()
    assert (start["type"], start["format"], start["config"]["width"]) == ("video.start", "m4s", 256)
    told = [event for event, _ in viewer.chunks]
    assert [event["type"] for event in viewer.events[1:-1]] == ["video.chunk_metadata"] * 5
    assert [event["transport_chunk_index"] for event in told] == list(range(5))
    assert [event["generation_chunk_index"] for event in told] == list(range(5))
    assert {event["kind"] for event in told} == {"media"}
    assert {event["request_id"] for event in told} == {start["request_id"]}
    assert sum(event["num_frames"] for event in told) == 60
    assert (viewer.done["chunks"], viewer.done["stopped"]) == (5, False)
    assert viewer.media == reference(RED, seconds=60 / 16, seed=3)


def test_a_prompt_changes_at_the_next_edge_and_its_viewer_is_told(server, reference):
    with server.watch(prompt=RED, seed=5, num_frames=120) as viewer:
        viewer.take(2)
        change(viewer, BLUE, name="blue", policy="reset")
        queued = viewer.until("session.interaction.queued")
        assert (queued["event_id"], queued["policy"], queued["transition_chunks"]) == ("blue", "reset", 1)
        change(viewer, BLUE, name="blue")  # the same again counts once
        viewer.all()
    first = [event for event, _ in viewer.chunks if event["started_event_ids"]]
    assert [event["started_event_ids"] for event in first] == [["blue"]]
    assert first[0]["completed_event_ids"] == ["blue"]
    number = first[0]["generation_chunk_index"]
    assert [event["prompt"] for event, _ in viewer.chunks] == [RED] * number + [BLUE] * (10 - number)
    changes = [
        PromptChange(chunk=0, prompts=(RED,)),
        PromptChange(chunk=number, prompts=(BLUE,), policy="reset"),
    ]
    assert viewer.media == reference(PromptSchedule(changes), seconds=7.5, seed=5)


def test_what_cannot_be_changed_is_said_with_its_name_and_the_video_goes_on(server):
    with server.watch(prompt=RED, num_frames=60) as viewer:
        viewer.take(1)
        camera = {"event_id": "camera", "event": {"multi_modal_data": {"camera": {}}}}
        viewer.send({"type": "session.interaction", "interaction": camera})
        change(viewer, "  ", name="nothing")
        refused = []
        while len(refused) < 2:
            if viewer.next()["type"] == "error":
                refused.append(viewer.events[-1])
        assert [(e["code"], e["event_id"]) for e in refused] == [
            ("interaction_failed", "camera"), ("interaction_failed", "nothing")
        ]  # fmt: skip
        assert viewer.all().done["chunks"] == 5


def test_garbage_is_refused_and_does_not_end_the_video(server):
    with server.watch(prompt=RED, num_frames=36) as viewer:
        viewer.send("{")
        viewer.send(b"\x00\xff")
        viewer.send("[" * 50_000)
        viewer.send({"type": "session.playback", "position_seconds": -1})
        viewer.send({"type": "session.paint"})
        viewer.send({"type": "session.ping"})
        kinds = []
        while "session.pong" not in kinds:
            kinds.append(viewer.next()["type"])
        assert kinds.count("error") == 5
        while viewer.done is None:
            viewer.next()
    assert viewer.done["chunks"] == 3


def test_too_much_garbage_ends_the_connection_but_not_the_stream(server):
    with server.watch(prompt=RED, seconds=3600) as viewer:
        name = viewer.next()["session_id"]
        with suppress(ConnectionClosed):  # the server may close while the last of them are on their way
            for _ in range(30):
                viewer.send("{")
        while viewer.next().get("code") != "too_many_faults":
            pass
    assert server.session(name)["status"] in ("ready", "paused")


@pytest.mark.parametrize(("start", "code"), [
    ({"prompt": " "}, "invalid_request"),
    ({"prompt": "x" * 3_000}, "invalid_request"),
    ({"prompt": RED, "model": "another"}, "model_not_found"),
    ({"prompt": RED, "format": "webm"}, "invalid_request"),
    ({"prompt": RED, "num_frames": 10**9}, "invalid_request"),
    ({"prompt": RED, "seed": -1}, "invalid_request"),
    ({"prompt": RED, "streaming_buffer_seconds": float("nan")}, "invalid_request"),
    ({"session_id": "../../etc"}, "not_found"),
])  # fmt: skip
def test_a_start_that_cannot_be_is_refused_in_a_sentence(server, start, code):
    there = len(list(server.streams))
    with server.watch(**start) as viewer:
        error = viewer.next()
    assert (error["type"], error["code"]) == ("error", code)
    assert "/" not in error["message"].replace("/v1", "")
    assert len(list(server.streams)) == there


def test_a_slow_viewer_slows_its_own_stream_alone(server):
    with (
        server.watch(prompt=RED, num_frames=16 * 600, receive_buffer=4_096) as slow,
        server.watch(prompt=BLUE, num_frames=240) as quick,
    ):
        name = slow.next()["session_id"]
        quick.all()
        assert quick.done["chunks"] == 20

        def stands():
            before = server.session(name)["sequence_number"]
            time.sleep(0.3)
            return before == server.session(name)["sequence_number"]

        wait_for(stands)
        there = server.session(name)["sequence_number"]
        assert there < 100  # of 800: what the system's own buffers hold, and no more
        slow.take(there)
        wait_for(lambda: server.session(name)["sequence_number"] > there)
        slow.send({"type": "session.stop"})


def test_a_viewer_that_says_where_it_is_gets_so_much_ahead_and_no_more(server):
    with server.watch(prompt=RED, seconds=600, streaming_buffer_seconds=1.5) as viewer:
        name = viewer.next()["session_id"]
        viewer.take(2)
        time.sleep(0.3)
        assert server.session(name)["sequence_number"] == 2
        viewer.send({"type": "session.playback", "position_seconds": 3.0})
        viewer.take(4)
        time.sleep(0.3)
        assert server.session(name)["sequence_number"] == 6
        viewer.send({"type": "session.stop"})
        assert viewer.until_done()["stopped"] is True


def test_an_endless_stream_is_made_no_faster_than_it_is_played(server):
    began = time.monotonic()
    with server.watch(prompt=RED) as viewer:
        name = viewer.next()["session_id"]
        assert viewer.events[0]["config"]["seconds"] is None
        viewer.take(4)
        time.sleep(0.3)
        made = server.session(name)["sequence_number"]
        assert made * 0.75 <= time.monotonic() - began + 3.0 + 0.75


def test_one_that_comes_back_is_given_what_it_missed_then_goes_on_live(server, reference):
    with server.watch(prompt=RED, seed=8, num_frames=144) as viewer:
        name = viewer.next()["session_id"]
        first = b"".join(data for _, data in viewer.take(4))
    server.until(name, viewers=0)
    with server.watch(session_id=name, sequence_number=4) as again:
        assert again.next()["sequence_number"] == 4
        again.all()
    assert [event["sequence_number"] for event, _ in again.chunks] == list(range(4, 12))
    event, payload = again.chunks[0]
    rest = payload[event["head_length"] :] + b"".join(data for _, data in again.chunks[1:])
    assert payload[: event["head_length"]] == first[: event["head_length"]]
    assert first + rest == reference(RED, seconds=9, seed=8)


def test_two_watch_one_stream_and_either_may_leave(server):
    with server.watch(prompt=RED, num_frames=16 * 30) as one:
        name = one.next()["session_id"]
        one.take(2)
        with server.watch(session_id=name, sequence_number=0) as other:
            one.take(4)
            one.socket.close()
            other.all()
    assert [event["sequence_number"] for event, _ in other.chunks] == list(range(40))
    assert b"".join(data for _, data in other.chunks)[: len(one.media)] == one.media


def test_a_stream_that_everybody_left_rests_on_disk_and_comes_back(server, reference):
    wait_for(lambda: server.metric("videomla_resident_streams") == 0)
    taken, given = server.metric("videomla_admitted_total"), server.metric("videomla_released_total")
    with server.watch(prompt=RED, seed=2, num_frames=120) as viewer:
        name = viewer.next()["session_id"]
        before = b"".join(data for _, data in viewer.take(3))
        assert server.session(name)["memory_bytes"] > 0
    rests = server.until(name, status="paused")
    assert (rests["resident"], rests["memory_bytes"]) == (False, 0)
    assert server.metric("videomla_released_total") == given + 1
    began = time.perf_counter()
    with server.watch(session_id=name, sequence_number=3) as again:
        again.take(1)
        while again.chunks[-1][0]["sequence_number"] < rests["sequence_number"]:
            again.take(1)
        cold = time.perf_counter() - began
        again.all()
    assert cold < 15  # and not a time to live, or a time-out, more
    event, payload = again.chunks[0]
    rest = payload[event["head_length"] :] + b"".join(data for _, data in again.chunks[1:])
    assert before + rest == reference(RED, seconds=7.5, seed=2)
    wait_for(lambda: server.metric("videomla_released_total") == given + 2)
    assert server.metric("videomla_admitted_total") == taken + 2


def test_a_request_that_waits_while_its_viewer_leaves_is_kept(server):
    with server.watch(prompt=RED, seconds=600, streaming_buffer_seconds=1.5) as viewer:
        name = viewer.next()["session_id"]
        viewer.take(2)
        time.sleep(0.2)  # nothing more is made now, so that the request waits
        change(viewer, BLUE, name="late")
        viewer.until("session.interaction.queued")
    server.until(name, status="paused")
    with server.watch(session_id=name, sequence_number=2) as again:
        event, _ = again.take(1)[0]
        assert (event["prompt"], event["started_event_ids"]) == (BLUE, ["late"])
        again.send({"type": "session.stop"})


def test_times_in_the_stream_go_on_without_a_gap(server, tmp_path):
    with server.watch(prompt=RED, num_frames=60) as viewer:
        viewer.all()
    (tmp_path / "video.mp4").write_bytes(viewer.media)
    with av.open(str(tmp_path / "video.mp4")) as file:
        times = [float(frame.time) for frame in file.decode(video=0)]
    assert np.allclose([b - a for a, b in pairwise(times)], 1 / 16, atol=1e-6)
    assert len(times) == 60


def test_silence_at_the_start_is_not_waited_for(checkpoint, tmp_path):
    from kit.processes.serving import serving

    with serving(checkpoint, tmp_path / "streams", start_seconds=0.2) as server, server.watch() as viewer:
        began = time.monotonic()
        assert viewer.next()["code"] == "start_timeout"
        assert time.monotonic() - began < ENOUGH


def test_a_viewer_stays_longer_than_a_request_may_take(checkpoint, tmp_path):
    """Connections that ask for nothing are closed after this time; one that became a WebSocket has asked."""
    with (
        serving(checkpoint, tmp_path / "streams", request_seconds=0.5) as server,
        server.watch(prompt=RED) as viewer,
    ):
        viewer.take(1)
        time.sleep(0.8)
        viewer.send({"type": "session.ping"})
        assert viewer.until("session.pong")
