"""What lies on disk: full disks, folders that a crash has torn, hundreds of streams at rest, odd moments."""

import asyncio
import json
import shutil
import time
from dataclasses import replace

import psutil
import pytest
from kit.processes.serving import BLUE, RED, serving, wait_for

from plugins.atomic_files import TEMPORARY_SUFFIX
from runtime.serve.disk import folder
from runtime.serve.streams import from_state
from runtime.serve.streams.stream import Stream

pytestmark = pytest.mark.cpu

MANY = 300


def no_room(*arguments):
    raise OSError(28, "No space left on device", "/a/path")


def on_loop(server, coroutine):
    """What `coroutine` returns on the event loop of the server."""
    return asyncio.run_coroutine_threadsafe(coroutine, server.streams._context.loop).result(120)


def folders(server):
    return {path.name for path in server.parts.settings.store.glob("*_*")}


def rested(server, **asked):
    """The name of a session that has a few chunks and rests."""
    name = server.http.post("/v1/sessions", json={"prompt": RED, "seconds": 9, **asked}).json()["id"]
    server.until(name, sequence_number=3)
    server.http.post(f"/v1/sessions/{name}/pause")
    return name


def is_full(response):
    error = response.json()["error"]
    return (response.status_code, error["code"]) == (507, "disk_full") and "/" not in error["message"]


def test_with_a_full_disk_nothing_begins_and_nothing_is_left(server, monkeypatch):
    there, name = folders(server), rested(server)
    data = server.http.get(f"/v1/sessions/{name}/state").content
    moved = "session_" + "3" * 24
    with monkeypatch.context() as patch:
        patch.setattr(folder, "atomic_write_text", no_room)
        assert is_full(server.http.post("/v1/sessions", json={"prompt": RED}))
        assert is_full(server.http.post("/v1/videos", json={"prompt": RED}))
        with server.watch(prompt=RED) as viewer:
            assert viewer.next()["code"] == "disk_full"
    with monkeypatch.context() as patch:
        patch.setattr(from_state, "save_state", no_room)
        assert is_full(server.http.post(f"/v1/sessions/{name}/fork", json={}))
        assert is_full(server.http.put(f"/v1/sessions/{moved}/state", content=data))
    assert folders(server) == there | {name}
    assert server.http.put(f"/v1/sessions/{moved}/state", content=data).status_code == 201
    for one in (name, moved):
        server.http.delete(f"/v1/sessions/{one}")


def test_with_a_full_disk_streams_end_leave_memory_and_can_be_removed(server, monkeypatch):
    """What cannot be recorded must not keep a stream in memory, or the server from looking after others."""
    wait_for(lambda: server.metric("videomla_resident_streams") == 0)
    with server.watch(prompt=RED, num_frames=192) as viewer, monkeypatch.context() as patch:
        name = viewer.next()["session_id"]
        viewer.take(1)
        patch.setattr(folder, "atomic_write_text", no_room)
        viewer.all()
        assert server.session(name)["status"] == "completed"
        assert server.metric("videomla_admitted_total") == server.metric("videomla_released_total")
        assert server.http.delete(f"/v1/sessions/{name}").status_code == 200
    assert name not in folders(server)
    asked = {"prompt": RED, "lease_seconds": 0.2}
    lasting = server.http.post("/v1/sessions", json=asked).json()["id"]
    server.until(lasting, status="paused")  # who looks after leases is still there
    server.http.delete(f"/v1/sessions/{lasting}")


@pytest.fixture(scope="module")
def torn(checkpoint, tmp_path_factory):
    """A server on a store of many streams at rest, some of which a crash has torn; and their names."""
    store = tmp_path_factory.mktemp("torn") / "streams"
    with serving(checkpoint, store) as server:
        with server.watch(prompt=RED, seed=1, num_frames=144) as viewer:
            name = viewer.next()["session_id"]
            viewer.take(2)
            event = {"event_id": "blue", "event": {"prompt": BLUE}}
            viewer.send({"type": "session.interaction", "interaction": event})
            while not viewer.next().get("started_event_ids"):
                pass
        server.http.post(f"/v1/sessions/{name}/pause")
        wait_for(lambda: server.session(name)["status"] == "paused")
        with server.watch(prompt=RED, seed=1, num_frames=144) as viewer:
            pass

    def another(number, **changed):
        path = store / f"session_{number:024x}"
        shutil.copytree(store / name, path)
        info = json.loads((path / "stream.json").read_text())
        (path / "stream.json").write_text(json.dumps({**info, "id": path.name, **changed}))
        return path

    for number in range(MANY):
        another(number)
    tails = {
        "video.mp4": b"\0\0\1\0moof" + b"x" * 40, "chunks.txt": b"99", "prompts.jsonl": b'{"chunk": 9, "pro',
        f"video.mp4.state{TEMPORARY_SUFFIX}": b"half a state", f"stream.json{TEMPORARY_SUFFIX}": b"{",
    }  # fmt: skip
    sound = another(MANY)
    for file, tail in tails.items():
        with (sound / file).open("ab") as written:
            written.write(tail)
    damaged = {
        "stream.json": [b"", b"{", b"[]", b'{"id": 1}', b"\xff"],
        "chunks.txt": [b"a b\n", b"9 9\n1 1\n", b"\0\n"],
        "prompts.jsonl": [b"{}\n", b"\0\0\0\n", b'{"chunk": "1"}\n'],
    }  # fmt: skip
    lost = []
    for file, contents in damaged.items():
        for content in contents:
            lost.append(another(1000 + len(lost)))
            (lost[-1] / file).write_bytes(content)
    another(2000, id=name)
    began, before = time.monotonic(), psutil.Process().memory_info().rss
    with serving(checkpoint, store) as server:
        server.started = time.monotonic() - began, psutil.Process().memory_info().rss - before
        yield server, name, sound, lost


def test_a_damaged_folder_keeps_no_other_stream_from_being_served(torn):
    server, name, sound, lost = torn
    listed = {one["id"] for one in server.http.get("/v1/sessions").json()["data"]}
    assert len(listed) == MANY + 3
    assert {name, sound.name} <= listed
    assert not listed & {path.name for path in lost}
    assert all(path.exists() for path in lost)  # what cannot be read is left for its owner
    data = server.http.get(f"/v1/sessions/{name}/state").content
    taken = server.http.put(f"/v1/sessions/{lost[0].name}/state", content=data)
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "exists")


def test_what_a_crash_left_half_written_is_dropped_and_the_stream_goes_on(torn):
    server, name, sound, _ = torn
    with server.watch(session_id=sound.name, sequence_number=0) as viewer:
        event = {"event_id": "red", "event": {"prompt": RED}}
        viewer.send({"type": "session.interaction", "interaction": event})
        viewer.all()
    assert [event["sequence_number"] for event, _ in viewer.chunks] == list(range(12))
    lines = (sound / "prompts.jsonl").read_text().splitlines()
    assert [json.loads(line)["event_ids"] for line in lines] == [["blue"], ["red"]]
    with server.watch(session_id=f"session_{7:024x}", sequence_number=0) as viewer:
        assert viewer.all().done["chunks"] == 12


def test_hundreds_of_streams_at_rest_cost_little(torn):
    server = torn[0]
    assert server.started[1] < 64 << 20
    assert server.metric('videomla_streams{kind="session",state="paused"}') >= MANY - 1
    assert server.metric("videomla_resident_streams") <= 2


@pytest.mark.parametrize("turns", range(0, 40, 3))
def test_whoever_is_cancelled_while_a_stream_comes_in_takes_no_place_with_it(server, turns):
    wait_for(lambda: server.metric("videomla_resident_streams") == 0)
    streams = server.streams

    async def cancelled():
        task = asyncio.ensure_future(streams.begin("session", prompt=RED, seed=turns, frames=96))
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert {one for one in streams if one.resident} == streams.places._held
        for one in list(streams):
            if one.info.seed == turns and one.info.frames == 96:
                await streams.remove(one)

    on_loop(server, cancelled())
    assert server.metric("videomla_admitted_total") == server.metric("videomla_released_total")


def test_a_video_that_ends_before_its_beginning_returns_is_over(server, monkeypatch):
    usual = Stream._admitted

    def slow(self, state):
        task = usual(self, state)
        wait_for(lambda: task.over)  # all of it is made
        time.sleep(0.2)
        return task

    monkeypatch.setattr(Stream, "_admitted", slow)
    with server.watch(prompt=RED, num_frames=4) as viewer:
        name = viewer.next()["session_id"]
        assert viewer.all().done["chunks"] == 1
    assert (server.session(name)["status"], server.session(name)["resident"]) == ("completed", False)


def test_a_job_that_is_deleted_as_its_turn_comes_is_not_made(server):
    streams = server.streams

    async def raced():
        job = await streams.begin("video", prompt=RED, seed=0, frames=16 * 600)
        streams._streams.pop(job.id)  # as `remove` begins
        job.info = replace(job.info, status="stopped")
        while streams._jobs:
            await asyncio.sleep(0.01)
        return job

    job = on_loop(server, raced())
    assert not job.resident
    wait_for(lambda: server.metric("videomla_admitted_total") == server.metric("videomla_released_total"))
    job.folder.remove()


def test_who_stops_a_stream_is_not_overruled_by_who_pauses_it(server):
    with server.watch(prompt=RED, seconds=600) as viewer:
        name = viewer.next()["session_id"]
        viewer.take(1)
        stream = server.streams.get(name, "session")

        async def both():
            stream.leave("stopped")
            await server.streams.pause(stream)

        on_loop(server, both())
        assert server.session(name)["status"] == "stopped"
