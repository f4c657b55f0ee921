"""Replicas behind one address, without Ray: the table, what passes through, and a viewer who stays."""

import threading
from contextlib import contextmanager
from functools import partial

import httpx
import pytest
from kit.processes.serving import RED, Watching, serving, settings_for, wait_for
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runtime.cluster.figures import together
from runtime.cluster.ingress import ingress
from runtime.cluster.replica import Replica
from runtime.cluster.table import SILENT_SECONDS, Load, ReplicaTable
from runtime.planning.request import prepare
from runtime.serve.disk.store import read_relay_key
from runtime.serve.edge.tracing import OpenTelemetryTracing, Tracing
from runtime.serve.listen import open_socket, server_for

pytestmark = pytest.mark.cpu


def job_of(checkpoint):
    return prepare("a video", checkpoint, threads=1)[0]


@contextmanager
def replicas(checkpoint, store, count, *, traced_at=None, traced_in=Tracing):
    """The table, so many replicas, and the address of all; traced at the address and in each replica."""
    settings, table = settings_for(store, save_every=0.0, api_keys=("k" * 16,)), ReplicaTable()
    made = partial(Replica, partial(job_of, checkpoint), settings, table.report, memory=None)
    there = [made(tracing_of=traced_in) for _ in range(count)]
    for one in there:
        one.address()

    async def find(session, failed, *, begins=True):
        return table.find(session, failed, begins=begins)

    async def everyone():
        return list(table.loads())

    key, stop = read_relay_key(store), threading.Event()
    with open_socket(settings) as listening:
        server = server_for(ingress(settings, key, find, everyone, traced_at), settings, stop)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            wait_for(lambda: server.started and len(table.loads()) == count)
            yield table, there, listening.getsockname()[1]
        finally:
            stop.set()
            thread.join()
            for one in there:
                one.drain()


def test_a_viewer_stays_while_replicas_end_one_after_the_other(checkpoint, tmp_path):
    key = {"Authorization": f"Bearer {'k' * 16}"}
    with (
        serving(checkpoint, tmp_path / "alone") as server,
        server.watch(prompt=RED, seed=7, num_frames=240) as whole,
    ):
        whole.all()
    with (
        replicas(checkpoint, tmp_path / "streams", 3) as (table, there, port),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=key) as http,
        Watching(port, headers=key, prompt=RED, seed=7, num_frames=240) as viewer,
    ):
        name = viewer.next()["session_id"]
        for _ in range(2):
            viewer.take(2)
            (address,) = wait_for(lambda: [a for a, load in table.loads().items() if name in load.sessions])
            next(one for one in there if one.address_ == address).drain()
            table.leave(address)
        viewer.all()
        assert http.get(f"/v1/sessions/{name}/content").content == viewer.media == whole.media
        assert [one["id"] for one in http.get("/v1/sessions").json()["data"]] == [name]
        assert http.get("/health").json() == {"status": "ready"}
        for odd in ("no JSON", {"type": "session.start", "session_id": ["x"], "sequence_number": "a"}):
            with Watching(port, headers=key) as other:
                other.send(odd)
                assert other.next()["code"] == "invalid_request"
        (left,) = table.loads()
        assert f'videomla_places{{replica="{left.removeprefix("http://")}"}}' in http.get("/metrics").text
        assert httpx.get(f"{left}/v1/models").status_code == 401  # but for those who have the key
        assert http.get("/v1/models", headers={"Authorization": "Bearer other"}).status_code == 401


def test_a_trace_goes_on_from_the_caller_through_the_address_to_the_replica(checkpoint, tmp_path):
    outer, inner = InMemorySpanExporter(), InMemorySpanExporter()
    trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"Authorization": f"Bearer {'k' * 16}", "traceparent": f"00-{trace}-{caller}-01"}
    traced = {"traced_at": OpenTelemetryTracing(outer), "traced_in": lambda: OpenTelemetryTracing(inner)}
    with replicas(checkpoint, tmp_path / "streams", 1, **traced) as (_, _, port):
        asked = {"prompt": RED, "seconds": 1}
        at = f"http://127.0.0.1:{port}/v1/sessions"
        assert httpx.post(at, json=asked, headers=headers, timeout=60).status_code == 201
        with Watching(port, headers=headers, prompt=RED, num_frames=12) as viewer:
            viewer.all()
    traced["traced_at"].close()
    for method, route in (("POST", "/v1/sessions"), ("WEBSOCKET", "/v1/realtime/video")):
        (passed_on,) = [span for span in outer.get_finished_spans() if span.name == method]
        (made,) = [span for span in inner.get_finished_spans() if span.name == f"{method} {route}"]
        assert f"{passed_on.parent.span_id:016x}" == caller
        assert made.parent.span_id == passed_on.context.span_id
        assert f"{made.context.trace_id:032x}" == trace
    stays = [span for span in inner.get_finished_spans() if span.name == "session"]
    assert [f"{stay.links[0].context.trace_id:032x}" for stay in stays] == [trace, trace]


def test_a_table_sends_new_sessions_where_there_is_room_and_forgets_who_is_silent():
    now = [0.0]
    table = ReplicaTable(clock=lambda: now[0])
    assert table.find(None) is None
    table.report("a", Load(sessions=frozenset({"one"}), places=2, ready=True))
    table.report("b", Load(sessions=frozenset(), places=3, ready=True))
    assert table.find("one") == "a"
    assert table.find("one", ["a"]) == "b"  # who goes on with it
    assert {table.find(None, begins=False) for _ in range(5)} == {"b"}  # nothing comes of these
    assert [table.find(None) for _ in range(3)] == ["b", "b", "a"]  # counted until they report
    table.report("b", Load(sessions=frozenset(), places=3, ready=False))
    assert table.find("other") == "a"
    now[0] += SILENT_SECONDS + 1
    table.report("b", Load(sessions=frozenset({"two"}), places=3, ready=True))
    assert (table.find("one"), set(table.loads())) == ("b", {"b"})
    table.leave("b")
    assert table.find("two") is None


def test_figures_of_all_replicas_are_grouped_and_named():
    one = '# HELP chunks Made.\n# TYPE chunks counter\nchunks 3.0\n# HELP of Kinds.\nof{kind="a"} 1.0\n'
    assert together({"x:1": one, "y:2": one}).splitlines() == [
        "# HELP chunks Made.",
        "# TYPE chunks counter",
        'chunks{replica="x:1"} 3.0',
        'chunks{replica="y:2"} 3.0',
        "# HELP of Kinds.",
        'of{replica="x:1",kind="a"} 1.0',
        'of{replica="y:2",kind="a"} 1.0',
    ]
