"""`/v1/videos`: jobs in the shape of the public video API, queued by the memory plan."""

import pytest
from kit.processes.serving import BLUE, RED, assert_head_is_get_without_a_body, serving, wait_for

from runtime.planning.request import prepare

pytestmark = pytest.mark.cpu


def job_of(server, name):
    return server.http.get(f"/v1/videos/{name}").json()


def complete(server, name):
    return wait_for(lambda: (one := job_of(server, name))["status"] == "completed" and one)


@pytest.fixture(scope="module")
def narrow(checkpoint, tmp_path_factory):
    """A server whose memory holds one stream."""
    plan = prepare(RED, checkpoint, seconds=1, threads=1)[0].plan()
    memory = plan.bytes_for(1)
    with serving(checkpoint, tmp_path_factory.mktemp("narrow") / "streams", memory=memory) as server:
        yield server


def test_a_job_is_queued_made_and_had(server):
    form = {"prompt": RED, "seconds": "2", "seed": "3", "size": "256x256", "user": "me"}
    response = server.http.post("/v1/videos", files={name: (None, value) for name, value in form.items()})
    assert response.status_code == 200, response.text
    made = response.json()
    assert (made["object"], made["status"], made["seconds"]) == ("video", "queued", "2")
    done = complete(server, made["id"])
    assert (done["progress"], done["error"]) == (100, None)
    whole = server.http.get(f"/v1/videos/{made['id']}/content")
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.content[4:8] == b"ftyp"
    assert_head_is_get_without_a_body(server, f"/v1/videos/{made['id']}/content")
    last = server.http.get(f"/v1/videos/{made['id']}/content", headers={"Range": "bytes=-50"})
    assert (last.status_code, last.content) == (206, whole.content[-50:])
    assert last.headers["content-range"].endswith(f"/{len(whole.content)}")
    with server.watch(prompt=RED, seed=3, num_frames=32) as viewer:
        assert viewer.all().media == whole.content
    listed = server.http.get("/v1/videos").json()
    assert made["id"] in [each["id"] for each in listed["data"]]
    assert server.http.delete(f"/v1/videos/{made['id']}").json()["deleted"] is True
    assert server.http.get(f"/v1/videos/{made['id']}").status_code == 404


def test_jobs_wait_for_their_turn_and_make_way_for_who_watches(narrow):
    assert narrow.http.get("/v1/models").json()["data"][0]["places"] == 1
    long = narrow.http.post("/v1/videos", json={"prompt": RED, "seconds": 30, "seed": 1}).json()["id"]
    short = narrow.http.post("/v1/videos", json={"prompt": BLUE, "seconds": 1}).json()["id"]
    wait_for(lambda: job_of(narrow, long)["status"] == "in_progress")
    assert job_of(narrow, short)["status"] == "queued"
    early = narrow.http.get(f"/v1/videos/{long}/content")
    assert (early.status_code, early.json()["error"]["code"]) == (409, "not_complete")
    with narrow.watch(prompt=BLUE, num_frames=36) as viewer:
        viewer.take(1)
        assert job_of(narrow, long)["status"] == "queued"  # its state lies on disk
        viewer.all()
    assert complete(narrow, long)["progress"] == 100
    assert complete(narrow, short)["progress"] == 100
    content = narrow.http.get(f"/v1/videos/{long}/content").content
    again = narrow.http.post("/v1/videos", json={"prompt": RED, "seconds": 30, "seed": 1}).json()["id"]
    complete(narrow, again)
    assert narrow.http.get(f"/v1/videos/{again}/content").content == content


def test_who_watches_is_never_driven_out(narrow):
    with narrow.watch(prompt=RED) as viewer:
        viewer.take(1)
        response = narrow.http.post("/v1/sessions", json={"prompt": BLUE})
        assert (response.status_code, response.json()["error"]["code"]) == (429, "busy")
        assert int(response.headers["retry-after"]) > 0
        with narrow.watch(prompt=BLUE) as other:
            assert other.next()["code"] == "busy"
        name = viewer.events[0]["session_id"]
    narrow.until(name, viewers=0)
    with narrow.watch(prompt=BLUE) as other:  # nobody watches the first now: it rests on disk
        other.take(1)
        assert narrow.session(name)["status"] == "paused"


def test_a_job_can_be_ended_on_its_way(server):
    name = server.http.post("/v1/videos", json={"prompt": RED, "seconds": 20_000}).json()["id"]
    wait_for(lambda: job_of(server, name)["status"] == "in_progress")
    assert server.http.delete(f"/v1/videos/{name}").status_code == 200
    assert server.http.get(f"/v1/videos/{name}").status_code == 404
    assert not (server.parts.settings.store / name).exists()


@pytest.mark.parametrize("asked", [
    {}, {"prompt": ""}, {"prompt": RED, "seconds": 0}, {"prompt": RED, "seconds": 1e9},
    {"prompt": RED, "size": "1280x720"}, {"prompt": RED, "num_inference_steps": 50},
    {"prompt": RED, "fps": 24}, {"prompt": RED, "seed": 1.5}, {"prompt": ["a"]},
])  # fmt: skip
def test_a_job_that_cannot_be_is_refused(server, asked):
    response = server.http.post("/v1/videos", json=asked)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_request")
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/sessions"])
def test_a_length_beyond_the_limit_is_refused_with_its_field_the_limit_and_the_unit(server, path):
    asked = {"prompt": RED, "seconds": 1e9}
    refused = server.http.post(path, json=asked).json()["error"]["message"]
    assert refused == "seconds: at most 21600 seconds, which are 6 hours"
    if path == "/v1/videos":
        refused = server.http.post(path, json={"prompt": RED, "num_frames": 10**400}).json()["error"][
            "message"
        ]
        assert refused == "num_frames: at most 345600 frames, which are 6 hours"


def test_the_list_comes_in_pages(server):
    names = [
        server.http.post("/v1/videos", json={"prompt": RED, "num_frames": 4, "seed": n}).json()["id"]
        for n in range(3)
    ]
    first = server.http.get("/v1/videos", params={"limit": 2}).json()
    assert ([one["id"] for one in first["data"]], first["has_more"]) == (names[:0:-1], True)
    second = server.http.get("/v1/videos", params={"limit": 1, "after": names[1]}).json()
    assert [one["id"] for one in second["data"]] == names[:1]
    assert server.http.get("/v1/videos", params={"limit": 0}).status_code == 422
