"""A server in this process, and those who watch it: clients that know the protocol, not the code."""

import json
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import httpx
from websockets.sync.client import connect

from runtime.planning.request import prepare
from runtime.serve.app import create_app
from runtime.serve.edge.settings import Limits, ServeSettings
from runtime.serve.listen import open_socket, server_for

RED, BLUE = "a red star bouncing on a navy background", "a blue ring resting on a gray background"
ENOUGH = 120
"""Seconds within which anything here happens."""


def settings_for(store, **changed):
    limits = {name: changed.pop(name) for name in list(changed) if name in Limits.__dataclass_fields__}
    return ServeSettings(store=store, name="debug", port=0, limits=Limits(**limits), **changed)


class Serving:
    """A running server, as its clients see it, and its parts for tests that look inside."""

    def __init__(self, app, server, port):
        self.app, self.server, self.port = app, server, port
        self.parts = app.state.server
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=ENOUGH)

    @property
    def streams(self):
        return self.parts.streams

    def watch(self, **start):
        return Watching(self.port, **start)

    def metric(self, name):
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def session(self, name):
        return self.http.get(f"/v1/sessions/{name}").json()

    def until(self, name, **wanted):
        """Wait until the session says so."""
        return wait_for(lambda: (one := self.session(name)) and wanted.items() <= one.items() and one)


def wait_for(condition, *, every=0.02):
    end = time.monotonic() + ENOUGH
    while not (found := condition()):
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(every)
    return found


def assert_head_is_get_without_a_body(server, path):
    got, head = server.http.get(path), server.http.head(path)
    assert (head.status_code, head.content, len(got.content)) == (
        200,
        b"",
        int(head.headers["content-length"]),
    )
    changing = ("date",)
    assert {n: v for n, v in head.headers.items() if n not in changing} == {
        n: v for n, v in got.headers.items() if n not in changing
    }
    assert head.headers["accept-ranges"] == "bytes"


@contextmanager
def serving(checkpoint, store, *, memory=1 << 40, threads=1, cache=None, tracing=None, **changed):
    """A server of `checkpoint` on a free port of this machine."""
    job, _ = prepare("a video", checkpoint, threads=threads, cache=cache)
    settings = settings_for(store, **changed)
    listening = open_socket(settings)
    if settings.shared is not None:
        settings = replace(settings, shared=f"http://127.0.0.1:{listening.getsockname()[1]}")
    app = create_app(job, settings, memory=memory, tracing=tracing)
    stop, streams = threading.Event(), app.state.server.streams
    server = server_for(app, settings, stop, drain=None if settings.shared is None else streams.drain)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        assert server.started
        one = Serving(app, server, listening.getsockname()[1])
        one.stop = stop
        yield one
        one.http.close()
    finally:
        server.should_exit = True
        thread.join(ENOUGH)
        listening.close()
        assert not thread.is_alive()


class Watching:
    """A viewer of `/v1/realtime/video` that speaks as vLLM-Omni's clients do, and keeps what it gets."""

    def __init__(self, port, *, headers=None, receive_buffer=None, **start):
        plain = None
        if receive_buffer is not None:
            plain = socket.socket()
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            plain.connect(("127.0.0.1", port))
        self._connecting = connect(
            f"ws://127.0.0.1:{port}/v1/realtime/video", max_size=None, additional_headers=headers,
            sock=plain, compression=None, max_queue=1 if plain else 16,
        )  # fmt: skip
        self.socket = self._connecting.__enter__()
        self.events, self.chunks, self.done = [], [], None
        self.media = b""
        if start:
            self.send({"type": "session.start", "format": "m4s", **start})

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.socket.close()

    def send(self, message):
        self.socket.send(message if isinstance(message, str | bytes) else json.dumps(message))

    def next(self):
        """The next message; a chunk's payload is taken with it."""
        event = json.loads(self.socket.recv(ENOUGH))
        self.events.append(event)
        if event["type"] == "video.chunk_metadata":
            payload = self.socket.recv(ENOUGH)
            assert len(payload) == event["byte_length"]
            self.chunks.append((event, payload))
            self.media += payload
        if event["type"] == "session.done":
            self.done = event
        return event

    def take(self, count):
        """So many chunks more."""
        there = len(self.chunks)
        while len(self.chunks) < there + count:
            assert self.next()["type"] != "error", self.events[-1]
        return self.chunks[there:]

    def until(self, kind):
        while (event := self.next())["type"] != kind:
            assert event["type"] not in ("error", "session.done"), event
        return event

    def until_done(self):
        """The last message."""
        while self.done is None:
            self.next()
        return self.done

    def all(self):
        """Everything up to the end."""
        while self.next()["type"] != "session.done":
            assert self.events[-1]["type"] != "error", self.events[-1]
        return self
