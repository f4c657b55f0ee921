"""`/v1/sessions`: begun, looked at, steered, forked, moved to another server, ended."""

import asyncio
import json
import random
import threading
from dataclasses import replace

import pytest
from kit.processes.serving import BLUE, RED, assert_head_is_get_without_a_body, serving
from safetensors.torch import load, save

from runtime.prompts.sources import PromptChange, PromptSchedule
from runtime.serve.routes.content import GrowingFile

pytestmark = pytest.mark.cpu


def begin(server, prompt=RED, **asked):
    response = server.http.post("/v1/sessions", json={"prompt": prompt, **asked})
    assert response.status_code == 201, response.text
    return response.json()


def chunks_of(server, name, number):
    """Chunks from `number` on, without the file's head, to the end; and what was told of them."""
    with server.watch(session_id=name, sequence_number=number) as viewer:
        viewer.all()
    told, payloads = zip(*viewer.chunks, strict=True)
    return told, [payload[event["head_length"] :] for event, payload in viewer.chunks]


def test_a_session_has_its_first_chunks_before_anybody_watches(server):
    one = begin(server, seed=4, seconds=9)
    assert (one["status"], one["seed"], one["seconds"], one["object"]) == ("ready", 4, 9.0, "session")
    assert one["lease_expires_at"] >= one["created_at"]
    ready = server.until(one["id"], sequence_number=3)
    assert ready["viewers"] == 0
    assert one["id"] in [each["id"] for each in server.http.get("/v1/sessions").json()["data"]]
    told, _ = chunks_of(server, one["id"], 0)
    assert len(told) == 12
    assert server.session(one["id"])["status"] == "completed"
    gone = server.http.delete(f"/v1/sessions/{one['id']}").json()
    assert gone["deleted"] is True
    assert server.http.get(f"/v1/sessions/{one['id']}").status_code == 404
    assert not (server.parts.settings.store / one["id"]).exists()


def test_a_session_rests_when_its_lease_is_over(server):
    one = begin(server, lease_seconds=0.2)
    assert server.until(one["id"], status="paused")["lease_expires_at"] is None
    refused = server.http.post("/v1/sessions", json={"prompt": RED, "lease_seconds": 10**9})
    assert refused.status_code == 422


def test_a_session_that_has_become_too_long_keeps_its_state(server, monkeypatch):
    limits = replace(server.streams.settings.limits, stream_seconds=1.0)
    name = begin(server)["id"]
    server.until(name, sequence_number=3)
    monkeypatch.setattr(server.streams, "settings", replace(server.streams.settings, limits=limits))
    server.until(name, status="completed")
    assert server.http.get(f"/v1/sessions/{name}/state").status_code == 200


def test_the_video_so_far_is_a_file_of_which_parts_can_be_had(server, reference):
    one = begin(server, seed=6, seconds=3)
    chunks_of(server, one["id"], 0)
    whole = server.http.get(f"/v1/sessions/{one['id']}/content")
    assert whole.content == reference(RED, seconds=3, seed=6)
    assert_head_is_get_without_a_body(server, f"/v1/sessions/{one['id']}/content")
    part = server.http.get(f"/v1/sessions/{one['id']}/content", headers={"Range": "bytes=100-299"})
    assert (part.status_code, part.content) == (206, whole.content[100:300])
    wrong = server.http.get(f"/v1/sessions/{one['id']}/content", headers={"Range": "bytes=99999999-"})
    assert (wrong.status_code, wrong.headers["content-range"]) == (416, f"bytes */{len(whole.content)}")
    assert wrong.json()["error"]["code"] == "range_not_satisfiable"
    for unread in ("rows=1-2", "bytes=a-b", "bytes=5-1"):
        ignored = server.http.get(f"/v1/sessions/{one['id']}/content", headers={"Range": unread})
        assert (ignored.status_code, ignored.content) == (200, whole.content)


def test_a_file_that_grows_while_it_is_sent_ends_where_it_was_said_to(tmp_path):
    path, sent = tmp_path / "video.mp4", []
    path.write_bytes(bytes(100_000))

    async def send(message):
        sent.append(message)
        with path.open("ab") as file:
            file.write(bytes(90_000))

    scope = {"type": "http", "method": "GET", "headers": [], "asgi": {"spec_version": "2.4"}}
    asyncio.run(GrowingFile(path)(scope, None, send))
    assert dict(sent[0]["headers"])[b"content-length"] == b"100000"
    assert sum(len(message["body"]) for message in sent[1:]) == 100_000
    assert [message["more_body"] for message in sent[1:]] == [True, False]


def test_a_prompt_can_be_changed_over_http(server):
    one = begin(server, seconds=6)
    asked = {"prompt": BLUE, "policy": "keep", "event_id": "mine"}
    answer = server.http.post(f"/v1/sessions/{one['id']}/interaction", json=asked)
    assert (answer.status_code, answer.json()["event_id"]) == (202, "mine")
    told, _ = chunks_of(server, one["id"], 0)
    assert ["mine"] in [event["started_event_ids"] for event in told]
    assert told[-1]["prompt"] == BLUE


def test_a_fork_has_the_same_past_and_a_future_of_its_own(server, reference):
    one = begin(server, seed=3, seconds=6)
    server.until(one["id"], sequence_number=3)
    other = server.http.post(f"/v1/sessions/{one['id']}/fork", json={"prompt": BLUE, "policy": "reset"})
    assert other.status_code == 201
    fork = other.json()
    assert fork["parent"] == one["id"]
    told, _ = chunks_of(server, fork["id"], 0)
    number = next(event["sequence_number"] for event in told if event["prompt"] == BLUE)
    changes = [
        PromptChange(chunk=0, prompts=(RED,)),
        PromptChange(chunk=number, prompts=(BLUE,), policy="reset"),
    ]
    content = server.http.get(f"/v1/sessions/{fork['id']}/content").content
    assert number == 3
    assert content == reference(PromptSchedule(changes), seconds=6, seed=3)
    chunks_of(server, one["id"], 0)  # the original knows nothing of it
    assert server.http.get(f"/v1/sessions/{one['id']}/content").content == reference(RED, seconds=6, seed=3)
    assert server.http.post(f"/v1/sessions/{one['id']}/fork", json={}).status_code == 409


def test_an_empty_prompt_is_refused_at_every_door_in_the_same_words(server):
    one = server.http.post("/v1/sessions", json={"prompt": RED, "seconds": 2}).json()["id"]
    for path in ("/v1/sessions", "/v1/videos", f"/v1/sessions/{one}/fork", f"/v1/sessions/{one}/interaction"):
        for prompt in ("", " \n"):
            refused = server.http.post(path, json={"prompt": prompt})
            assert (refused.status_code, refused.json()["error"]["message"]) == (
                422, "prompt: the prompt is empty; describe what the video shows"
            ), path  # fmt: skip


def test_a_fork_with_another_seed_parts_from_there_on(server):
    one = begin(server, seed=3, seconds=6)
    server.until(one["id"], sequence_number=3)
    fork = server.http.post(f"/v1/sessions/{one['id']}/fork", json={"seed": 4}).json()
    (_, mine), (_, theirs) = chunks_of(server, one["id"], 0), chunks_of(server, fork["id"], 0)
    same = [a == b for a, b in zip(mine, theirs, strict=True)]
    assert same == [True] * 3 + [False] * 5


def test_a_session_moves_to_another_server_while_it_plays(server, checkpoint, tmp_path, reference):
    with (
        serving(checkpoint, tmp_path / "elsewhere") as elsewhere,
        server.watch(prompt=RED, seed=9, num_frames=144) as viewer,
    ):
        name = viewer.next()["session_id"]
        viewer.take(4)
        moved = server.http.get(f"/v1/sessions/{name}/state")
        number = int(moved.headers["x-sequence-number"])
        assert number >= 4
        # Whoever watches takes what was made before the move here, and goes on there.
        viewer.take(number - 4)
        viewer.socket.close()
        there = elsewhere.http.put(f"/v1/sessions/{name}/state", content=moved.content)
        assert there.status_code == 201, there.text
        assert (there.json()["first_sequence_number"], there.json()["status"]) == (number, "paused")
        _, rest = chunks_of(elsewhere, name, number)
        assert viewer.media + b"".join(rest) == reference(RED, seconds=9, seed=9)
        early = elsewhere.watch(session_id=name, sequence_number=0)
        assert early.next()["code"] == "gone"
        early.socket.close()
        again = elsewhere.http.put(f"/v1/sessions/{name}/state", content=moved.content)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "exists")


def test_a_state_holds_no_path_of_this_machine(server, checkpoint):
    one = begin(server, seconds=6)
    data = server.http.get(f"/v1/sessions/{one['id']}/state").content
    header = data[: 8 + int.from_bytes(data[:8], "little")].decode(errors="replace")
    assert '"cache"' in header
    assert str(checkpoint) not in header
    assert str(server.parts.settings.store) not in header


def tampered(data, change):
    """A state of which `change` alters header or tensors, with hashes that are right again."""
    from hashlib import sha256

    from runtime.resume.state import _digest

    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["state"])
    tensors = load(data)
    change(header, tensors)
    header["sha256"] = _digest(tensors)
    text = json.dumps(header)
    return save(tensors, {"state": text, "state_sha256": sha256(text.encode()).hexdigest()})


@pytest.mark.parametrize(("change", "says"), [
    (lambda h, t: t.update(cache=t["cache"][:, :, :1].contiguous()), "cache"),
    (lambda h, t: t.update(cache=t["cache"].double()), "cache"),
    (lambda h, t: h.update(forgotten=1 << 50), "count"),
    (lambda h, t: h.update(number=-1), "number is -1"),
    (lambda h, t: h["video"]["window"].update(chunk="x") or h.update(position=[1 << 40, 0]), "a chunk"),
    (lambda h, t: h["video"].update(chunks=None), "frames and chunks"),
    (lambda h, t: h["video"].update(seed="4"), "seed"),
    (lambda h, t: h["video"].update(frames=10**12), "frames is 1000000000000"),
    (lambda h, t: h["video"].update(prompts=[]), "prompts"),
    (lambda h, t: h["video"]["prompts"][0].update(prompt="x" * 9_999), "prompt"),
    (lambda h, t: h["video"].update(layout="mha"), "layout"),
    (lambda h, t: h["video"].pop("weights"), "state"),
    (lambda h, t: h.update(memory=None), "decoder"),
    (lambda h, t: h["video"].update(start_file="/etc/passwd", start_hash="0", start_chunks=9), "machine"),
    (lambda h, t: h["video"]["prompts"][0].update(chunk=2), "chunks [2]"),
    (lambda h, t: h["mark"].update(frames=None), "mark.frames is None"),
])  # fmt: skip
def test_a_state_that_is_not_one_is_refused_whole(server, change, says):
    one = begin(server, seconds=6)
    server.until(one["id"], sequence_number=3)
    data = server.http.get(f"/v1/sessions/{one['id']}/state").content
    name, store = "session_" + "0" * 24, server.parts.settings.store
    response = server.http.put(f"/v1/sessions/{name}/state", content=tampered(data, change))
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    assert error["code"] == "invalid_state"
    assert says in error["message"]
    assert str(store) not in error["message"]
    assert server.http.get(f"/v1/sessions/{name}").status_code == 404
    assert {path.name for path in store.iterdir() if path.is_file()} <= {".lock"}


def test_bytes_that_are_no_state_are_refused(server):
    name = "session_" + "1" * 24
    for body in (b"", b"garbage" * 100, (1 << 40).to_bytes(8, "little") + b"{}"):
        response = server.http.put(f"/v1/sessions/{name}/state", content=body)
        assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_state")
    large = server.http.put(f"/v1/sessions/{name}/state", content=b"0" * (5 << 20))
    assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
    odd = server.http.put("/v1/sessions/..%2F..%2Fetc/state", content=b"")
    assert odd.status_code in (404, 422)


def test_a_state_of_which_any_byte_has_changed_is_refused(server):
    one = begin(server, seconds=6)
    server.until(one["id"], sequence_number=3)
    data = server.http.get(f"/v1/sessions/{one['id']}/state").content
    draw = random.Random(0)
    for _ in range(12):
        at = draw.randrange(len(data))
        damaged = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        response = server.http.put(f"/v1/sessions/session_{'4' * 24}/state", content=damaged)
        assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_state")


def test_many_at_once_are_each_what_they_are_alone(server, reference):
    names = [begin(server, seed=seed, seconds=3)["id"] for seed in range(6)]
    got = {}

    def watch(name):
        with server.watch(session_id=name, sequence_number=0) as viewer:
            got[name] = viewer.all().media

    threads = [threading.Thread(target=watch, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, name in enumerate(names):
        assert got[name] == reference(RED, seconds=3, seed=seed)
