"""Clients that mean harm, and networks that are as bad: slow, deaf, half open, garbled, without end."""

import os
import socket
import struct
import threading
import time
from contextlib import suppress

import psutil
import pytest
from kit.processes.serving import BLUE, RED, serving, wait_for
from websockets.exceptions import ConnectionClosed

from runtime.serve.edge.connections import FRAGMENTS, SlowReaderWatchdog

pytestmark = pytest.mark.cpu

HANDSHAKE = (
    "GET /v1/realtime/video HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
TEXT, CONTINUED, PING = 0x1, 0x0, 0x9


@pytest.fixture(scope="module")
def hasty(checkpoint, tmp_path_factory):
    """A server of little patience."""
    store = tmp_path_factory.mktemp("hasty") / "streams"
    with serving(
        checkpoint, store, request_seconds=1.0, start_seconds=1.0, stall_seconds=2.0, lease_seconds=1.0,
        requests_per_minute=10**6, transfers=1,
    ) as one:  # fmt: skip
        yield one


def plain(server, buffer=None):
    """A connection without manners."""
    one = socket.socket()
    if buffer is not None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    one.connect(("127.0.0.1", server.port))
    one.settimeout(30)
    return one


def upgraded(server, buffer=None):
    one = plain(server, buffer)
    one.sendall(HANDSHAKE.encode())
    assert one.recv(12) == b"HTTP/1.1 101"
    return one


def frame(kind, data=b"", *, last=True):
    """A frame as clients send them, masked with nothing."""
    assert len(data) < 126
    return struct.pack("!BB4x", kind | (0x80 if last else 0), 0x80 | len(data)) + data


def ends(connection):
    """Whether the server hangs up, whatever it says before."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


def connections(server):
    return len(server.server.server_state.connections)


def is_well(server):
    with server.watch(prompt=BLUE, num_frames=4) as viewer:
        return viewer.all().done["chunks"] == 1


def test_a_viewer_may_stay_longer_than_a_request_may_take(hasty):
    """A connection that had become a WebSocket was hung up on when its first request's time was over."""
    with hasty.watch(prompt=RED) as viewer:
        name, began = viewer.next()["session_id"], time.monotonic()
        while time.monotonic() - began < 2.5:
            viewer.send({"type": "session.ping"})
            viewer.until("session.pong")
            time.sleep(0.1)
        assert hasty.session(name)["viewers"] == 1


def test_a_second_request_may_not_trickle_either(hasty):
    one = plain(hasty)
    one.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert one.recv(4096).startswith(b"HTTP/1.1 200")
    began, sent = time.monotonic(), 0
    with pytest.raises(ConnectionError):
        while time.monotonic() - began < 20:
            one.sendall(b"G" if not sent else b"E")
            sent += 1
            time.sleep(0.2)
    one.close()
    assert sent < 30


def test_a_body_that_trickles_is_not_waited_for_byte_by_byte(hasty):
    one = plain(hasty)
    one.sendall(b"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 60000\r\n\r\n")
    began = time.monotonic()
    one.settimeout(0.2)
    answer = b""
    while not answer and time.monotonic() - began < 20:
        one.sendall(b" ")
        try:
            answer = one.recv(4096)
        except TimeoutError:
            continue
    one.close()
    assert answer.startswith(b"HTTP/1.1 408")


def test_who_takes_no_answer_is_hung_up_on_over_http_and_websocket(hasty):
    with hasty.watch(prompt=RED, num_frames=192) as viewer:
        name = viewer.next()["session_id"]
        viewer.all()
    with (hasty.parts.settings.store / name / "video.mp4").open("ab") as file:
        file.write(bytes(16 << 20))  # as long as a video of hours
    there = connections(hasty)
    deaf = [plain(hasty, 4096), plain(hasty, 4096)]
    for one in deaf:
        one.sendall(f"GET /v1/sessions/{name}/content HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    watching = hasty.watch(session_id=name, sequence_number=0, receive_buffer=4096)
    wait_for(lambda: connections(hasty) >= there + 3)
    assert wait_for(lambda: connections(hasty) <= there)  # nobody else is here
    for one in deaf:
        one.close()
    watching.socket.socket.close()


def test_pings_that_nobody_reads_the_answers_of_fill_no_memory(hasty):
    one = upgraded(hasty, 4096)
    one.sendall(frame(TEXT, b'{"type": "session.start", "prompt": "a red star"}'))
    one.settimeout(0.5)
    pings, most = frame(PING, b"x" * 125) * 2_000, 0
    with pytest.raises((ConnectionError, TimeoutError)):
        while True:
            one.sendall(pings)
            there = list(hasty.server.server_state.connections)
            most = max([most, *(each.transport.get_write_buffer_size() for each in there)])
    one.close()
    assert most < 1 << 20


def test_a_message_of_empty_frames_ends(hasty):
    one = upgraded(hasty)
    one.sendall(frame(TEXT, b"{", last=False) + frame(CONTINUED, last=False) * (FRAGMENTS + 10))
    assert ends(one)
    one.close()


@pytest.mark.parametrize("sent", [
    b"\xff" * 64,  # reserved bits, no mask
    frame(0x3, b"what"),
    frame(CONTINUED, b"of what?"),
    frame(TEXT, b"\xff\xfe"),  # no UTF-8
    frame(PING, last=False),
    struct.pack("!BBQ4x", 0x81, 0xFF, 1 << 62),  # more than there is
    struct.pack("!BBQ4x", 0x82, 0xFF, (1 << 16) + 1),
    frame(0x8, b"\x00"),
])  # fmt: skip
def test_frames_that_are_none_end_their_connection_alone(hasty, sent):
    one = upgraded(hasty)
    one.sendall(sent)
    assert ends(one)
    one.close()


@pytest.mark.parametrize("sent", [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,  # TLS
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 100_000,
    b"GET /\x00 HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nzzz\r\n",
    os.urandom(4096) + b"\r\n\r\n",
])  # fmt: skip
def test_requests_that_are_none_end_their_connection_alone(hasty, sent):
    one = plain(hasty)
    one.sendall(sent)
    assert ends(one)
    one.close()
    assert hasty.http.get("/health/ready").status_code == 200


@pytest.mark.parametrize("headers", [
    {"Host": "["}, {"Host": "[::1"}, {"Origin": "http://["}, {"Origin": "null"}, {"Origin": ""},
    {"Origin": "http://127.0.0.1"}, {"Origin": "http://127.0.0.1.evil.example"},
    {"Origin": "https://127.0.0.1@evil.example"}, {"Host": "127.0.0.1.evil.example"}, {"Host": ""},
])  # fmt: skip
def test_names_and_origins_that_are_none_are_strangers(hasty, headers):
    response = hasty.http.post("/v1/sessions", json={"prompt": RED}, headers=headers)
    assert response.status_code == 403, response.text
    assert response.json()["error"]["code"] in ("wrong_origin", "wrong_host")


def test_the_end_of_a_stream_is_not_said_amid_a_chunk(hasty):
    """Whoever stops while a chunk is on its way gets that chunk whole, then the end."""
    with hasty.watch(prompt=RED, num_frames=16 * 600, receive_buffer=4096) as viewer:
        viewer.next()
        time.sleep(0.5)  # what the network holds is full: a chunk waits
        viewer.send({"type": "session.stop"})
        assert viewer.until_done()["stopped"] is True  # `next` takes a payload after each metadata


def test_states_are_few_at_once(hasty):
    def files():
        return {path.name for path in hasty.parts.settings.store.iterdir() if path.is_file()}

    made = hasty.http.post("/v1/sessions", json={"prompt": RED, "seconds": 6}).json()["id"]
    hasty.until(made, sequence_number=3)
    one = plain(hasty)
    name = "session_" + "2" * 24
    one.sendall(
        f"PUT /v1/sessions/{name}/state HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999\r\n\r\nx".encode()
    )
    wait_for(lambda: hasty.parts.transfers)
    assert files() == {".lock"}  # what is received has no name, which would be left after a crash
    busy = hasty.http.get(f"/v1/sessions/{made}/state")
    assert (busy.status_code, busy.json()["error"]["code"]) == (429, "busy")
    one.close()  # amid the body
    wait_for(lambda: not hasty.parts.transfers)
    assert hasty.http.get(f"/v1/sessions/{made}/state").status_code == 200
    wait_for(lambda: not hasty.parts.transfers)
    assert files() == {".lock"}


def test_nobody_is_let_in_beyond_what_descriptors_allow(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.serve.listen.CONNECTIONS", 6)
    with serving(checkpoint, tmp_path / "streams", start_seconds=60.0) as server:
        kept = [upgraded(server) for _ in range(6)]
        more = plain(server)
        more.sendall(HANDSHAKE.encode())
        assert ends(more)
        more.close()
        for one in kept:
            one.close()
        wait_for(lambda: connections(server) == 0)
        assert is_well(server)


def test_a_crowd_that_behaves_badly_leaves_nothing_behind(hasty):
    """Fifty at once, in six ways; then memory, threads and descriptors are as before."""
    process = psutil.Process()

    def crowd():
        there = [[plain, upgraded][number % 2](hasty) for number in range(36)]
        for number, one in enumerate(there):
            one.sendall((b"GET / HT", frame(TEXT, b"{", last=False))[number % 2])
            if number % 3 == 0:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset
            if number % 3 < 2:
                one.close()
        viewers = [hasty.watch(prompt=RED, seed=number) for number in range(12)]
        for number, viewer in enumerate(viewers):
            if number % 2:
                viewer.next()
            with suppress(OSError):  # the server may have been quicker
                viewer.socket.socket.shutdown(2)  # without a word
            viewer.socket.close()
        for one in there:
            one.close()

    def quiet():
        wait_for(lambda: connections(hasty) <= 1 and hasty.metric("videomla_resident_streams") == 0)
        for stream in hasty.http.get("/v1/sessions").json()["data"]:
            hasty.http.delete(f"/v1/sessions/{stream['id']}")
        return process.num_fds(), threading.active_count(), process.memory_info().rss

    crowd()
    before = quiet()
    crowd()
    after = quiet()
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1] + 2
    assert after[2] <= before[2] * 1.1 + (8 << 20)
    assert hasty.metric("videomla_admitted_total") == hasty.metric("videomla_released_total")
    assert is_well(hasty)


def test_a_watch_ends_who_takes_nothing_and_nobody_else():
    class Connection:
        def __init__(self):
            self.transport, self.left, self.closing, self.aborted = self, 0, False, False

        def is_closing(self):
            return self.closing

        def get_write_buffer_size(self):
            return self.left

        def abort(self):
            self.aborted = True

    now = [0.0]
    watch, idle, slow, deaf, closing = (
        SlowReaderWatchdog(5.0, clock=lambda: now[0]),
        *(Connection() for _ in range(4)),
    )
    deaf.left, slow.left, closing.closing = 100, 100, True
    for second in range(8):
        now[0], slow.left, closing.left = float(second), 100 - second, 50 - second
        watch.look([idle, slow, deaf, closing])
    assert [one.aborted for one in (idle, slow, deaf, closing)] == [False, False, True, True]


def test_a_server_that_was_attacked_is_well(hasty):
    assert is_well(hasty)
    with hasty.watch(prompt=RED) as viewer, pytest.raises(ConnectionClosed):
        viewer.take(1)
        hasty.http.delete(f"/v1/sessions/{viewer.events[0]['session_id']}")
        while True:
            viewer.next()
