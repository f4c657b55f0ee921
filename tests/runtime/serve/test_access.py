"""Who is let in, and how those are told who are not: keys, origins, hosts, sizes, pace, errors, figures."""

import base64
import logging
import socket
import time

import pytest
from click.testing import CliRunner
from kit.processes.serving import RED, assert_head_is_get_without_a_body, serving, wait_for
from websockets.exceptions import InvalidStatus

from runtime.cli.serve import main
from runtime.serve.edge.access import RateLimiter

pytestmark = pytest.mark.cpu

KEY = "correct horse battery staple"


@pytest.fixture(scope="module")
def locked(checkpoint, tmp_path_factory):
    """A server with a key and small limits."""
    store = tmp_path_factory.mktemp("locked") / "streams"
    with serving(
        checkpoint, store, api_keys=(KEY,), request_seconds=1.0, requests_per_minute=60, viewers=2
    ) as one:
        yield one


def status_of(server, headers):
    with pytest.raises(InvalidStatus) as refused:
        server.watch(headers=headers, prompt=RED)
    response = refused.value.response
    return response.status_code, response.body


def test_nothing_but_page_and_health_is_seen_without_a_key(locked):
    assert locked.http.get("/").status_code == 200
    assert locked.http.get("/page/page.js").status_code == 200
    for path in ("/", "/page/page.css"):
        assert_head_is_get_without_a_body(locked, path)
    assert locked.http.get("/health/live").status_code == 200
    for path in ("/v1/models", "/v1/sessions", "/v1/videos", "/metrics", "/openapi.json"):
        response = locked.http.get(path)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "no_key")
        assert response.headers["www-authenticate"] == "Bearer"
    assert locked.http.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
    opened = locked.http.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    assert opened.json()["data"][0]["id"] == "debug"


def test_a_websocket_needs_the_key_too_and_a_page_sends_it_as_a_subprotocol(locked):
    assert status_of(locked, {})[0] == 401
    spoken = "vmla.key." + base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("=")
    for headers in (
        {"Authorization": f"Bearer {KEY}"},
        {"Sec-WebSocket-Protocol": f"vmla.video, {spoken}"},
    ):
        plain = socket.create_connection(("127.0.0.1", locked.port))
        lines = {
            "Host": "127.0.0.1", "Upgrade": "websocket", "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", **headers,
        }  # fmt: skip
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        plain.sendall(f"GET /v1/realtime/video HTTP/1.1\r\n{head}\r\n".encode())
        assert plain.recv(4096).startswith(b"HTTP/1.1 101")
        plain.close()


def test_pages_of_other_origins_and_other_names_of_the_server_are_refused(server):
    status, body = status_of(server, {"Origin": "https://evil.example"})
    assert status == 403
    assert b"wrong_origin" in body
    evil = server.http.post("/v1/sessions", json={"prompt": RED}, headers={"Origin": "https://evil.example"})
    assert (evil.status_code, evil.json()["error"]["code"]) == (403, "wrong_origin")
    rebound = server.http.get("/v1/models", headers={"Host": "evil.example"})
    assert (rebound.status_code, rebound.json()["error"]["code"]) == (403, "wrong_host")
    with server.watch(headers={"Origin": server.url}, prompt=RED, num_frames=4) as viewer:
        assert viewer.all().done["chunks"] == 1


def test_a_refused_websocket_is_a_line_of_the_log_and_no_error(server, locked, caplog, monkeypatch):
    for name, level in (("uvicorn.error", logging.WARNING), ("vmla.serve", logging.INFO)):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "propagate", False)
        monkeypatch.setattr(logger, "handlers", [caplog.handler])
        caplog.set_level(level, logger=name)
    assert status_of(server, {"Origin": "https://evil.example"})[0] == 403
    assert status_of(locked, {})[0] == 401
    with socket.create_connection(("127.0.0.1", server.port)) as plain:  # a handshake that is none
        head = "Host: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        plain.sendall(f"GET /v1/realtime/video HTTP/1.1\r\n{head}".encode())
        assert plain.recv(4096).startswith(b"HTTP/1.1 4")
        while plain.recv(4096):
            pass
    for one in (server, locked):  # what came of the refusals is logged by now
        wait_for(lambda one=one: not one.server.server_state.tasks)
    told = [(record.levelname, record.getMessage(), record.fields) for record in caplog.records]
    assert told == [
        ("INFO", "websocket refused", {"status": 403, "code": "wrong_origin"}),
        ("INFO", "websocket refused", {"status": 401, "code": "no_key"}),
    ]


PAGE = "https://example.org"


@pytest.fixture(scope="module")
def friendly(checkpoint, tmp_path_factory):
    """A server with a key, whose user lets pages of one origin in."""
    store = tmp_path_factory.mktemp("friendly") / "streams"
    with serving(checkpoint, store, api_keys=(KEY,), origins=(PAGE,)) as one:
        yield one


def ask(server, origin, method="POST", headers="authorization, content-type"):
    """What a browser asks before it sends such a request."""
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return server.http.options("/v1/sessions", headers={"Origin": origin, **asked})


def granted(response):
    return {name.lower() for name in response.headers if name.lower().startswith("access-control-")}


def test_a_page_of_a_named_origin_may_send_its_key_and_read_answers(friendly):
    asked = ask(friendly, PAGE)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == PAGE
    allowed = asked.headers["access-control-allow-headers"].lower()
    assert {"authorization", "content-type", "range"} <= set(allowed.split(", "))
    assert ask(friendly, PAGE, method="PUT").status_code == ask(friendly, PAGE, method="DELETE").status_code
    page, key = {"Origin": PAGE}, {"Authorization": f"Bearer {KEY}"}
    made = friendly.http.post(
        "/v1/videos", json={"prompt": RED, "num_frames": 4}, headers={**page, **key}
    )  # fmt: skip
    assert made.status_code == 200
    refused = friendly.http.get("/v1/sessions", headers=page)
    assert refused.status_code == 401  # which the page can read, too
    name = made.json()["id"]
    wait_for(lambda: friendly.http.get(f"/v1/videos/{name}", headers=key).json()["status"] == "completed")
    part = friendly.http.get(f"/v1/videos/{name}/content", headers={**page, **key, "Range": "bytes=0-99"})
    assert (part.status_code, len(part.content)) == (206, 100)
    for answer in (made, refused, part):
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "origin" in answer.headers["vary"].lower()
        shown = set(answer.headers["access-control-expose-headers"].split(", "))
        assert {"Retry-After", "Content-Range", "Accept-Ranges", "X-Sequence-Number"} <= shown


@pytest.mark.parametrize("origin", ["https://evil.example", "http://example.org", "null", "*"])
def test_pages_of_other_origins_are_granted_nothing(friendly, origin):
    key = {"Authorization": f"Bearer {KEY}"}
    answers = [
        ask(friendly, origin),
        friendly.http.get("/v1/models", headers={"Origin": origin, **key}),
        friendly.http.post("/v1/sessions", json={"prompt": RED}, headers={"Origin": origin, **key}),
    ]
    assert [granted(answer) for answer in answers] == [set(), set(), set()]
    assert (answers[0].status_code, answers[2].status_code) == (401, 403)


@pytest.mark.parametrize("odd", ["example.org", "https://example.org/", "https://Example.org", "*", "null"])
def test_an_origin_that_no_browser_sends_is_refused(odd):
    result = CliRunner().invoke(main, ["--allow-origin", odd])
    assert (result.exit_code, "scheme, host and port alone" in result.output) == (2, True)


def test_large_bodies_are_refused_whether_they_say_so_or_not(server):
    for body in (b"x" * 70_000, iter([b"x" * 9_000] * 10)):
        response = server.http.post("/v1/sessions", content=body)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")


def test_one_who_asks_for_nothing_or_slowly_is_hung_up_on(locked):
    silent = socket.create_connection(("127.0.0.1", locked.port))
    slow = socket.create_connection(("127.0.0.1", locked.port))
    head = f"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
    half = socket.create_connection(("127.0.0.1", locked.port))
    half.sendall(head.encode())  # and never the end of it
    slow.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{{".encode())
    began = time.monotonic()
    for one in (silent, half):
        one.settimeout(20)
        assert one.recv(100) == b""
        one.close()
    slow.settimeout(20)
    assert slow.recv(4096).split(b"\r\n")[0] == b"HTTP/1.1 408 Request Timeout"
    slow.close()
    assert time.monotonic() - began < 15


def test_too_many_requests_are_told_when_to_come_again(locked):
    answers = [
        locked.http.post("/v1/sessions", headers={"Authorization": f"Bearer {KEY}"}) for _ in range(70)
    ]
    last = next(one for one in answers if one.status_code == 429)
    assert last.json()["error"]["code"] == "too_fast"
    assert int(last.headers["retry-after"]) >= 1


def test_pace_is_given_back_with_time():
    now = [0.0]
    pace = RateLimiter(2, clock=lambda: now[0])
    assert [pace.take("a"), pace.take("a"), pace.take("b")] == [None, None, None]
    assert pace.take("a") == 31
    now[0] = 31.0
    assert pace.take("a") is None


@pytest.mark.parametrize(("method", "path", "body", "status"), [
    ("POST", "/v1/sessions", "{", 422),
    ("POST", "/v1/sessions", '{"prompt": "a", "policy": "x"}', 422),
    ("POST", "/v1/sessions", '{"prompt": "a", "model": "b"}', 404),
    ("POST", "/v1/sessions", '{"prompt": "a", "seconds": -1}', 422),
    ("POST", "/v1/sessions/nothing/fork", "{}", 404),
    ("GET", "/v1/sessions/..%2f..%2fetc%2fpasswd", "", 404),
    ("GET", "/page/..%2f..%2fapp.py", "", 404),
    ("GET", "/page/app.py", "", 404),
    ("DELETE", "/v1/videos/video_0", "", 404),
    ("PATCH", "/v1/videos", "", 405),
    ("GET", "/nothing", "", 404),
])  # fmt: skip
def test_every_error_is_json_with_a_code_and_a_sentence(server, method, path, body, status):
    response = server.http.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"code", "message"}
    assert str(server.parts.settings.store.parent) not in response.text
    assert body != "{" or error["message"] == "the body is not valid JSON"


def test_answers_carry_what_shields_a_browser(server):
    headers = server.http.get("/").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "script-src 'self'" in headers["content-security-policy"]
    assert "server" not in headers


def test_health_and_figures(server):
    assert server.http.get("/health/ready").json() == {"status": "ready"}
    assert server.http.get("/health").json() == {"status": "ready"}
    with server.watch(prompt=RED, num_frames=36) as viewer:
        viewer.all()
    text = server.http.get("/metrics").text
    for name in (
        "chunks_total", "frames_total", "chunk_seconds_bucket", "first_frame_seconds_count", "places",
        "deadline_misses_total", "waiting", "viewers", "resident_memory_bytes", "sent_bytes_total",
        'streams{kind="session",state="completed"}',
    ):  # fmt: skip
        assert f"videomla_{name}" in text, name
    assert server.metric("videomla_sent_bytes_total") >= len(viewer.media)


def test_others_are_let_in_only_if_somebody_said_so(tmp_path):
    short = tmp_path / "keys"
    short.write_text("secret\n")
    for arguments, says in (
        (["--host", "0.0.0.0"], "--api-key"),
        (["--host", "0.0.0.0", "--api-key", str(short)], "16 printable characters"),
        (["--no-auth", "--api-key", str(short)], "leave out --api-key"),
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert says in result.output
