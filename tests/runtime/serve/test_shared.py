"""Two servers on one folder: what one makes the other shows, and goes on with when the first ends or dies."""

import asyncio
import errno
import json
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit.processes.serving import BLUE, RED, serving, wait_for

from plugins.errors import UserError
from runtime.serve.disk.fence import ClaimLostError, Fence, locks_stay_here
from runtime.serve.disk.folder import StreamFolder
from runtime.serve.disk.store import Store
from runtime.serve.shared import streams as shared_streams

pytestmark = pytest.mark.cpu
CHUNKS, FRAMES = 20, 240


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):
    """One who watched a stream that nothing happened to."""
    with serving(checkpoint, tmp_path_factory.mktemp("whole") / "streams") as server:
        with server.watch(prompt=RED, seed=7, num_frames=FRAMES) as viewer:
            viewer.all()
        yield viewer


def shared(checkpoint, store, **changed):
    return serving(checkpoint, store, shared="set by the kit", save_every=0.0, **changed)


@contextmanager
def watched_through_the_other(checkpoint, store):
    """Two servers, a stream that is watched at the first, and a viewer of it at the second."""
    with (
        shared(checkpoint, store) as first,
        shared(checkpoint, store) as second,
        first.watch(prompt=RED, seed=7, num_frames=FRAMES) as direct,
    ):
        name = direct.next()["session_id"]
        direct.take(1)
        with second.watch(session_id=name, sequence_number=0) as viewer:
            yield first, second, name, viewer


def kill(server):
    """What its process's death would do: the system closes its sockets and locks; nothing more is written."""
    streams = server.streams

    def die():
        for stream in streams:
            if stream.claim is not None:
                with stream.claim._lock:
                    file, stream.claim._file = stream.claim._file, None
                    os.close(file)
        streams.ready = False
        server.server.force_exit = server.server.should_exit = True
        for listening in server.server.servers:
            listening.close()
        for connection in list(server.server.server_state.connections):
            connection.transport.abort()

    streams._context.loop.call_soon_threadsafe(die)


def test_a_stream_is_shown_by_the_other_server_and_taken_over_when_its_own_dies(checkpoint, tmp_path, whole):
    store = tmp_path / "streams"
    with watched_through_the_other(checkpoint, store) as (first, second, name, viewer):
        viewer.take(3)
        assert not any(stream.resident for stream in second.streams)
        assert second.session(name)["viewers"] == 2  # the first one's answer
        kill(first)
        viewer.all()
        assert [event["sequence_number"] for event, _ in viewer.chunks] == list(range(CHUNKS))
        assert [event["transport_chunk_index"] for event, _ in viewer.chunks] == list(range(CHUNKS))
        assert viewer.done["chunks"] == CHUNKS
        assert viewer.media == whole.media
        content = second.http.get(f"/v1/sessions/{name}/content").content
        assert content == whole.media


def test_a_server_that_ends_hands_its_streams_over_within_a_chunk(checkpoint, tmp_path, whole):
    """Its viewers at the other one see no more of it than a chunk that comes as the others do."""
    store = tmp_path / "streams"
    with shared(checkpoint, store) as first, shared(checkpoint, store) as second:
        name = first.http.post("/v1/sessions", json={"prompt": RED, "seed": 7, "seconds": 15}).json()["id"]
        with second.watch(session_id=name, sequence_number=0) as viewer:
            viewer.take(2)
            first.stop.set()
            viewer.all()
        assert viewer.done["status"] == "completed"
        assert viewer.media == whole.media
        assert second.session(name)["status"] == "completed"


def test_a_change_of_prompt_that_died_with_its_server_is_asked_for_again_and_one_that_did_not_is_not(
    checkpoint, tmp_path
):
    def change(viewer, name):
        event = {"event_id": name, "event": {"prompt": BLUE}, "policy": "reset"}
        viewer.send({"type": "session.interaction", "interaction": event})
        viewer.until("session.interaction.queued")

    def changes(viewer):
        return [
            (e["started_event_ids"], e["sequence_number"]) for e, _ in viewer.chunks if e["started_event_ids"]
        ]

    store = tmp_path / "streams"
    with watched_through_the_other(checkpoint, store) as (first, _, name, viewer):
        viewer.take(1)
        change(viewer, "one")
        while not changes(viewer):
            viewer.next()
        kill(first)
        viewer.take(2)
        change(viewer, "two")
        viewer.all()
        said = [event["type"] for event in viewer.events]
        assert [ids for ids, _ in changes(viewer)] == [["one"], ["two"]]
        assert said.count("session.interaction.queued") == 2
        recorded = [json.loads(line) for line in (store / name / "prompts.jsonl").read_text().splitlines()]
        assert [(one["event_ids"], one["chunk"]) for one in recorded] == changes(viewer)


def test_jobs_of_a_server_that_dies_are_made_by_the_other(checkpoint, tmp_path, whole):
    store = tmp_path / "streams"
    with shared(checkpoint, store) as first, shared(checkpoint, store) as second:
        asked = {"prompt": RED, "seed": 7, "seconds": 15}
        jobs = [first.http.post("/v1/videos", json=asked).json()["id"] for _ in range(2)]
        wait_for(lambda: any(stream.index.frames > 20 for stream in first.streams))
        kill(first)
        for job in jobs:
            wait_for(lambda job=job: second.http.get(f"/v1/videos/{job}").json()["status"] == "completed")
            assert second.http.get(f"/v1/videos/{job}/content").content == whole.media


def test_a_server_knows_what_the_other_has_begun_changed_and_deleted(checkpoint, tmp_path):
    store = tmp_path / "streams"
    with shared(checkpoint, store) as first, shared(checkpoint, store) as second:
        made = first.http.post("/v1/sessions", json={"prompt": RED}).json()["id"]
        assert [one["id"] for one in second.http.get("/v1/sessions").json()["data"]] == [made]
        assert second.session(made)["resident"]
        second.http.post(f"/v1/sessions/{made}/interaction", json={"prompt": BLUE}).raise_for_status()
        fork = second.http.post(f"/v1/sessions/{made}/fork", json={"seed": 5})
        assert fork.json()["parent"] == made
        state = second.http.get(f"/v1/sessions/{made}/state").content
        assert second.http.put(f"/v1/sessions/{made}/state", content=state).status_code == 409
        assert second.http.post(f"/v1/sessions/{made}/pause").json()["status"] == "paused"
        with second.watch(session_id=made) as viewer:
            viewer.take(1)
            assert second.streams.get(made, "session").resident  # nobody had it
            assert first.session(made)["viewers"] == 1
        assert first.http.delete(f"/v1/sessions/{made}").json()["deleted"]
        assert second.http.get(f"/v1/sessions/{made}").status_code == 404
        assert not (store / made).exists()
        outsider = {"x-vmla-relay": "guessed", "origin": "https://elsewhere.example"}
        assert first.http.post("/v1/sessions", json={"prompt": RED}, headers=outsider).status_code == 403


def test_of_two_claims_one_holds_until_its_process_lets_go(tmp_path):
    folder = StreamFolder(tmp_path / "session_1")
    here, there = Fence("http://here"), Fence("http://there")
    assert here.claim(folder) is None  # there is no such stream
    folder.path.mkdir()
    claim = here.claim(folder)
    assert there.claim(folder) is None
    assert (there.holder(folder), here.holder(folder)) == ("http://here", None)
    with claim.held():
        pass
    claim.release()
    claim.release()
    with pytest.raises(ClaimLostError), claim.held():
        pass
    assert there.holder(folder) is None
    second = there.claim(folder)
    os.close(second._file)  # its process dies
    second._file = None
    assert json.loads(folder.owner.read_text())["address"] == "http://there"
    assert here.holder(folder) is None


def test_a_claim_that_the_system_lost_writes_nothing_more(tmp_path):
    """A network's file system lets others have the locks of a machine that it has not heard of for long."""
    folder = StreamFolder(tmp_path)
    claim = Fence("http://here").claim(folder)
    folder.owner.write_text('{"address": "http://there", "claim": "other"}')
    with pytest.raises(ClaimLostError), claim.held():
        pass
    claim.release()
    assert json.loads(folder.owner.read_text())["address"] == "http://there"


@pytest.fixture
def stale(monkeypatch):
    """Lets every use of a file's content raise what NFS says of a handle that its server has forgotten."""
    usual, files = os.pread, set()

    def pread(file, *where):
        if file in files:
            raise OSError(errno.ESTALE, "Stale file handle")
        return usual(file, *where)

    monkeypatch.setattr(os, "pread", pread)
    return files


def test_a_claim_whose_file_is_stale_is_lost_and_is_let_go_of(tmp_path, stale):
    folder, there = StreamFolder(tmp_path), Fence("http://there")
    claim = Fence("http://here").claim(folder)
    stale.add(claim._file)
    with pytest.raises(ClaimLostError), claim.held():
        pass
    assert there.claim(folder) is None
    claim.release()
    stale.clear()
    there.claim(folder).release()


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        ("nfs4", "rw,vers=4.2,local_lock=none", None),
        ("nfs", "rw,vers=3,nolock", "nfs mounted with nolock"),
        ("nfs", "rw,vers=3,local_lock=all", "nfs mounted with local_lock=all"),
        ("cifs", "rw,nobrl", "cifs mounted with nobrl"),
        ("ext4", "rw", None),
    ],
)
def test_a_folder_whose_locks_stay_on_one_machine_is_known(kind, options, why):
    mounts = f"1 0 254:0 / / rw - ext4 /dev/vda rw\n2 1 0:5 / /data rw - {kind} host:/ {options}\n"
    assert locks_stay_here(Path("/data/streams"), mounts) == why


def test_a_store_is_shared_by_those_that_say_so_alone(tmp_path):
    one, two = Store(tmp_path, shared=True), Store(tmp_path, shared=True)
    assert one.relay_key == two.relay_key
    assert (tmp_path / ".relay-key").stat().st_mode & 0o077 == 0
    with pytest.raises(UserError, match="another server"):
        Store(tmp_path)
    one.close()
    two.close()
    alone = Store(tmp_path)
    with pytest.raises(UserError, match="another server"):
        Store(tmp_path, shared=True)
    alone.close()


def on_loop(server, coroutine):
    """What `coroutine` returns on the event loop of the server."""
    return asyncio.run_coroutine_threadsafe(coroutine, server.streams._context.loop).result(120)


@pytest.fixture(scope="module")
def one(checkpoint, tmp_path_factory):
    """A server that could share its folder, and is alone."""
    with shared(checkpoint, tmp_path_factory.mktemp("one") / "streams") as server:
        yield server


@pytest.fixture
def rested(one):
    """A session of `one` that is not in memory."""
    name = one.http.post("/v1/sessions", json={"prompt": RED, "seconds": 9}).json()["id"]
    one.http.post(f"/v1/sessions/{name}/pause")
    one.until(name, resident=False)
    return one.streams.get(name, "session")


@pytest.mark.parametrize("held", [True, False], ids=["by another", "by nobody"])
def test_whoever_is_cancelled_while_a_stream_is_claimed_takes_neither_place_nor_claim(
    one, rested, monkeypatch, held
):
    there, usual = Fence("http://there"), one.streams._fence.claim
    theirs = there.claim(rested.folder) if held else None
    claiming = threading.Event()

    def slow(folder):
        claiming.set()
        claim = usual(folder)
        time.sleep(0.1)
        return claim

    async def cancelled():
        task = asyncio.ensure_future(one.streams.activate(rested))
        await asyncio.to_thread(claiming.wait)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    monkeypatch.setattr(shared_streams, "HAND_OVER_SECONDS", 0.2)
    monkeypatch.setattr(one.streams._fence, "claim", slow)
    on_loop(one, cancelled())
    time.sleep(0.2)  # whatever a thread still does
    assert rested not in one.streams.places._held
    if theirs is not None:
        theirs.release()
    assert (again := there.claim(rested.folder)) is not None
    again.release()


def test_a_stream_whose_claim_is_stale_leaves_memory_and_others_go_on_with_it(one, stale):
    name = one.http.post("/v1/sessions", json={"prompt": RED}).json()["id"]
    stream = one.streams.get(name, "session")
    stale.add(stream.claim._file)
    with one.watch(session_id=name):
        one.until(name, resident=False)
    assert stream not in one.streams.places._held
    stale.clear()
    assert stream.folder.read().status == "ready"  # nothing was written that another would find
    with one.watch(session_id=name) as viewer:
        viewer.take(1)
    one.http.delete(f"/v1/sessions/{name}").raise_for_status()


def test_a_job_whose_claim_cannot_be_had_gives_its_place_back_and_is_made_later(one, monkeypatch):
    usual, refused = one.streams._fence.claim, []

    def claim(folder):
        if len(refused) < 2:
            refused.append(folder)
            raise OSError(errno.ESTALE, "Stale file handle")
        return usual(folder)

    monkeypatch.setattr(one.streams._fence, "claim", claim)
    job = one.http.post("/v1/videos", json={"prompt": RED, "seconds": 1}).json()["id"]
    wait_for(lambda: one.http.get(f"/v1/videos/{job}").json()["status"] == "completed")
    assert len(refused) == 2 and not one.streams.places._held


def test_what_could_not_be_removed_can_be_removed_later(one, rested, monkeypatch):
    def refuses(self):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(StreamFolder, "remove", refuses)
        assert one.http.delete(f"/v1/sessions/{rested.id}").status_code >= 500
    monkeypatch.setattr(shared_streams, "HAND_OVER_SECONDS", 0.2)
    assert one.http.delete(f"/v1/sessions/{rested.id}").json()["deleted"]
    assert not rested.folder.path.exists()


def test_a_job_that_is_just_written_is_not_taken_for_one_of_another_server(one, monkeypatch):
    usual, added = StreamFolder.write, []

    def looked_at(self, info):
        usual(self, info)
        if not added:
            one.http.get("/v1/videos")  # reads anew what lies in the folder

    def counted(folder, info, add=one.streams.add):
        added.append(info.id)
        return add(folder, info)

    monkeypatch.setattr(StreamFolder, "write", looked_at)
    monkeypatch.setattr(one.streams, "add", counted)
    job = one.http.post("/v1/videos", json={"prompt": RED, "seconds": 1}).json()["id"]
    assert added == [job]
