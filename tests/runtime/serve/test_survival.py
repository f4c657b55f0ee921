"""What a server survives: crashes, a second one on its store, a thousand viewers that come and go."""

import gc
import shutil
import threading
import time

import psutil
import pytest
from kit.processes.serving import BLUE, RED, serving, wait_for

from plugins.errors import UserError
from runtime.serve.disk.index import ChunkIndex
from runtime.serve.disk.store import Store
from runtime.serve.streams.places import Places

pytestmark = pytest.mark.cpu


def test_after_a_crash_its_viewers_miss_no_chunk_and_get_none_that_differs(checkpoint, tmp_path):
    """The store is copied while the server works: what a machine that loses power would have."""
    with (
        serving(checkpoint, tmp_path / "streams", save_every=0.0) as server,
        server.watch(prompt=RED, seed=7, num_frames=240) as viewer,
    ):
        name = viewer.next()["session_id"]
        viewer.take(3)
        event = {"event_id": "blue", "event": {"prompt": BLUE}, "policy": "reset"}
        viewer.send({"type": "session.interaction", "interaction": event})
        while not viewer.next().get("started_event_ids"):
            pass
        viewer.take(1)
        seen = len(viewer.chunks)
        state = tmp_path / "streams" / name / "video.mp4.state"
        wait_for(state.exists)
        shutil.copytree(tmp_path / "streams", tmp_path / "crashed")
        viewer.all()
    assert seen < 20
    with serving(checkpoint, tmp_path / "crashed") as server:
        assert server.session(name)["status"] == "paused"
        with server.watch(session_id=name, sequence_number=seen) as again:
            again.all()
        assert [event["sequence_number"] for event, _ in again.chunks] == list(range(seen, 20))
        content = server.http.get(f"/v1/sessions/{name}/content").content
    assert content == viewer.media  # of the server that nothing happened to


def test_a_server_that_is_stopped_and_started_goes_on_with_streams_and_jobs(checkpoint, tmp_path):
    store = tmp_path / "streams"
    with serving(checkpoint, store) as server:
        job = server.http.post("/v1/videos", json={"prompt": RED, "seconds": 24, "seed": 1}).json()["id"]
        with server.watch(prompt=RED, seed=1, num_frames=384) as viewer:
            name = viewer.next()["session_id"]
            viewer.take(5)
    with serving(checkpoint, store) as server:
        wait_for(lambda: server.http.get(f"/v1/videos/{job}").json()["status"] == "completed")
        with server.watch(session_id=name, sequence_number=5) as again:
            again.all()
        assert server.http.get(f"/v1/sessions/{name}/content").content == (
            server.http.get(f"/v1/videos/{job}/content").content
        )


def test_a_new_session_takes_the_place_of_the_one_that_was_left_first(checkpoint, tmp_path):
    store = tmp_path / "streams"
    with serving(checkpoint, store, stored=3, spared_seconds=3600.0, lease_seconds=0.1) as server:
        begin = {"prompt": RED}
        names = [server.http.post("/v1/sessions", json=begin).json()["id"] for _ in range(3)]
        for name in names:
            server.until(name, status="paused")
        for path in ("/v1/sessions", f"/v1/sessions/{names[2]}/fork", "/v1/videos"):
            refused = server.http.post(path, json=begin)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "busy")
            assert 3400 < int(refused.headers["retry-after"]) <= 3600
        for stream in server.streams:
            stream.left_at -= 4000.0
        server.session(names[0])  # asked for, it is spared again
        with server.watch(**begin) as viewer:
            assert viewer.next()["type"] == "video.start"
            there = [one["id"] for one in server.http.get("/v1/sessions").json()["data"]]
            assert {*there} == {names[0], names[2], viewer.events[0]["session_id"]}
            assert not (store / names[1]).exists()
            assert server.http.post("/v1/videos", json=begin).status_code == 200  # in place of names[2]
            refused = server.http.post("/v1/sessions", json=begin)
            assert refused.status_code == 429


def test_a_store_has_one_server(server):
    with pytest.raises(UserError, match="another server"):
        Store(server.parts.settings.store)


def test_viewers_that_come_and_go_leave_nothing_behind(checkpoint, tmp_path):
    process, rounds = psutil.Process(), 24
    with serving(checkpoint, tmp_path / "streams", lease_seconds=0.2, requests_per_minute=10**6) as server:

        def quiet():
            wait_for(lambda: server.metric("videomla_resident_streams") == 0)
            for stream in server.http.get("/v1/sessions").json()["data"]:
                server.http.delete(f"/v1/sessions/{stream['id']}")
            gc.collect()
            return process.num_fds(), threading.active_count(), process.memory_info().rss

        def crowd():
            for number in range(rounds):
                viewer = server.watch(prompt=RED, seed=number)
                if number % 3:
                    viewer.next()
                if number % 3 == 2:
                    viewer.take(1)
                if number % 2:
                    viewer.socket.close()
                else:
                    viewer.socket.socket.shutdown(2)  # without a word
                    viewer.socket.close()

        crowd()
        before = quiet()
        crowd()
        after = quiet()
        assert server.metric("videomla_admitted_total") == server.metric("videomla_released_total")
        assert [path.name for path in (tmp_path / "streams").iterdir()] == [".lock"]
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1] + 2
    assert after[2] <= before[2] * 1.1 + (8 << 20)


@pytest.mark.parametrize(("save_every", "answer"), [(1000.0, 201), (0.0, 409)])
def test_a_stream_that_fails_says_so_and_gives_back_its_place(checkpoint, tmp_path, save_every, answer):
    """It is forked from its start; one whose state is of the file that is gone is not."""
    with (
        serving(checkpoint, tmp_path / "streams", save_every=save_every) as server,
        server.watch(prompt=RED, seconds=600) as viewer,
    ):
        name = viewer.next()["session_id"]
        viewer.take(1)
        video = tmp_path / "streams" / name / "video.mp4"
        if not save_every:  # a viewer may have a chunk before its state is kept
            wait_for(video.with_name("video.mp4.state").exists)
        video.unlink()
        while viewer.next()["type"] != "error":
            pass
        assert viewer.events[-1]["code"] == "generation_failed"
        assert str(tmp_path) not in viewer.events[-1]["message"]
        assert server.session(name)["status"] == "failed"
        wait_for(lambda: server.metric("videomla_released_total") == 1)
        assert server.http.post(f"/v1/sessions/{name}/fork", json={}).status_code == answer


def test_the_index_drops_what_a_crash_left_and_what_was_cut(tmp_path):
    path = tmp_path / "chunks.txt"
    index = ChunkIndex(path, 5)
    for end in (100, 250, 300):
        index.add(end, 12)
    with path.open("a") as file:
        file.write("40")  # half a line
    again = ChunkIndex(path, 5)
    assert (again.next, again.bytes, again.frames) == (8, 300, 36)
    assert (again[6].start, again[6].end, again[5].start) == (100, 250, 0)
    again.cut(299)
    assert (again.next, ChunkIndex(path, 5).next) == (7, 7)


def test_a_place_is_given_back_once(server):
    places = Places(1, type(server.parts.metrics)())
    places.hold("a stream")
    for _ in range(2):
        places.give_back("a stream")
    assert places.free == 1
    assert places._metrics.released._value.get() == 1


def test_states_on_disk_come_back_soon(server):
    with server.watch(prompt=RED, num_frames=480) as viewer:
        name = viewer.next()["session_id"]
        viewer.take(3)
    there = server.until(name, status="paused")["sequence_number"]
    began = time.perf_counter()
    with server.watch(session_id=name, sequence_number=there) as again:
        again.take(1)
    assert time.perf_counter() - began < 15  # and not a time to live, or a time-out, more
