"""Spans of a request, of a stream's stay in memory and of its chunks, as an exporter gets them."""

import time

import pytest
from kit.processes.serving import RED, serving, wait_for
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from plugins.errors import UserError
from runtime.serve.edge.tracing import OpenTelemetryTracing, Tracing, traced_to

pytestmark = pytest.mark.cpu

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def spans(checkpoint, tmp_path_factory):
    """Those of a server that served a live stream, a job that was refused, and a session that failed."""
    exporter, store = InMemorySpanExporter(), tmp_path_factory.mktemp("traced") / "streams"
    with serving(checkpoint, store, tracing=OpenTelemetryTracing(exporter), save_every=1e9) as server:
        with server.watch(prompt=RED, num_frames=60) as viewer:
            viewer.all()
        asked = {"prompt": RED, "seconds": 600}
        caller = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        name = server.http.post("/v1/sessions", json=asked, headers=caller).json()["id"]
        server.until(name, sequence_number=3)
        (store / name / "video.mp4").unlink()
        wait_for(lambda: fails(server, name))
        assert server.http.post("/v1/videos", json={"prompt": ""}).status_code == 422
        assert server.http.get("/v1/models", headers={"Host": "elsewhere"}).status_code == 403
    return exporter.get_finished_spans()


def fails(server, name):
    """Watch for a moment a session whose file is gone: its viewer or its next chunk finds out first."""
    with server.watch(session_id=name) as viewer:
        viewer.next()
        time.sleep(0.1)
    return server.session(name)["status"] == "failed"


def named(spans, name):
    return [span for span in spans if span.name == name]


def test_each_chunk_lies_in_its_streams_stay_and_says_what_it_took(spans):
    first, second = named(spans, "session")
    mine = [span for span in named(spans, "chunk") if span.parent.span_id == first.context.span_id]
    assert [span.attributes["videomla.chunk"] for span in mine] == list(range(5))
    assert first.attributes["videomla.chunks"] == 5
    assert [one.attributes["videomla.status"] for one in (first, second)] == ["completed", "failed"]
    assert (first.status.status_code, second.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)
    for span in mine:
        parts = [span.attributes[f"videomla.{name}_seconds"] for name in ("denoise", "clean", "decode")]
        assert (span.end_time - span.start_time) / 1e9 == pytest.approx(sum(parts), abs=1e-6)


def test_a_request_goes_on_with_its_callers_trace_and_is_linked_to_what_it_brought(spans):
    (begun,) = named(spans, "POST /v1/sessions")
    assert f"{begun.context.trace_id:032x}" == TRACE
    assert f"{begun.parent.span_id:016x}" == PARENT
    assert begun.attributes["http.response.status_code"] == 201
    stays = named(spans, "session")
    assert [link.context.span_id for link in stays[1].links] == [begun.context.span_id]
    assert stays[1].context.trace_id != begun.context.trace_id
    live = named(spans, "WEBSOCKET /v1/realtime/video")
    assert stays[0].links[0].context.span_id == live[0].context.span_id


def test_what_is_refused_is_traced_too_and_nothing_tells_a_prompt(spans):
    (refused,) = named(spans, "POST /v1/videos")
    assert refused.attributes["http.response.status_code"] == 422
    (stranger,) = named(spans, "GET")
    assert stranger.attributes["http.response.status_code"] == 403
    assert RED not in "".join(span.to_json() for span in spans)


def test_without_the_option_nothing_is_traced(server):
    assert type(server.streams._tracing) is Tracing
    with server.watch(prompt=RED, num_frames=12) as viewer:
        viewer.all()


def test_who_lacks_the_exporter_is_told_what_installs_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UserError, match=r"videomla\[otel\]"):
        traced_to("http://localhost:4318/v1/traces")
