"""Traces for OpenTelemetry: a span for each request, each stay of a stream in memory, and each of its chunks.

Nothing is traced, and nothing of OpenTelemetry loaded, unless the server is told where traces go. Spans hold
neither prompts nor keys.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from plugins.errors import missing_extra
from runtime.telemetry.events import ChunkReport

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

SERVICE = "vmla-serve"
CONTEXT = ("traceparent", "tracestate")
"""Headers that say which span a request belongs to (W3C Trace Context)."""


class StreamSpan:
    """The span of a stream's time in memory; this one records nothing."""

    def chunk(self, report: ChunkReport) -> None:
        """Note that a chunk was made; may be called on any thread."""

    def end(self, status: str) -> None:
        """Note that the stream has left memory and is in `status` now."""


class Answer:
    """The answer to a request, as its trace records it."""

    status: int | None = None
    """Status of HTTP; None while there is no answer."""


class Tracing:
    """Tracing that records nothing."""

    @contextmanager
    def request(self, scope: Any) -> Iterator[Answer]:
        """A context in which the request or WebSocket of the ASGI `scope` is answered."""
        yield Answer()

    def stay(self, stream: str, *, kind: str, chunk: int) -> StreamSpan:
        """Begin the record of a stream's stay in memory; its next chunk is `chunk`."""
        return StreamSpan()

    def close(self) -> None:
        """Export the spans that are still waiting."""


class OpenTelemetryTracing(Tracing):
    """Traces to an exporter, in the background."""

    def __init__(self, exporter: SpanExporter) -> None:
        """`exporter` takes finished spans; it is closed at the end.

        Raises:
            UserError: if OpenTelemetry is not installed.
        """
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise missing_extra("opentelemetry-sdk", "otel") from error
        # A provider of its own: that of the process belongs to whoever runs it.
        self._provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(SERVICE)

    @contextmanager
    def request(self, scope: Any) -> Iterator[Answer]:
        """See `Tracing.request`; the span continues the caller's own trace (`traceparent`), if there is one.

        From here on the scope's own headers name this span, so that a server which the request is passed on
        to continues the same trace.
        """
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, StatusCode

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method, answer = scope.get("method", "WEBSOCKET"), Answer()
        with self._tracer.start_as_current_span(
            method, context=extract(headers), kind=SpanKind.SERVER, record_exception=False
        ) as span:
            scope["headers"] = _within_current(scope["headers"])
            try:
                yield answer
            finally:
                route = getattr(scope.get("route"), "path", None)
                span.update_name(f"{method} {route}" if route else method)
                span.set_attribute("http.request.method", method)
                if route:  # the route and not the path, which has names of streams
                    span.set_attribute("http.route", route)
                if answer.status is not None:
                    span.set_attribute("http.response.status_code", answer.status)
                    span.set_status(StatusCode.ERROR if answer.status >= 500 else StatusCode.UNSET)

    def stay(self, stream: str, *, kind: str, chunk: int) -> StreamSpan:
        """See `Tracing.stay`; the span links to the request that brought the stream, which ends earlier."""
        from opentelemetry import trace
        from opentelemetry.context import Context

        before = trace.get_current_span().get_span_context()
        links = [trace.Link(before)] if before.is_valid else []
        told: dict[str, str | int] = {
            "videomla.stream": stream,
            "videomla.kind": kind,
            "videomla.first_chunk": chunk,
        }
        return _OpenTelemetrySpan(
            self._tracer, self._tracer.start_span("session", Context(), attributes=told, links=links)
        )

    def close(self) -> None:
        """See `Tracing.close`; waits until the exporter has them."""
        self._provider.shutdown()


def _within_current(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """`headers` that belong to the span under way."""
    from opentelemetry.propagate import inject

    ours: dict[str, str] = {}
    inject(ours)
    others = [(name, value) for name, value in headers if name.decode("latin-1") not in ours]
    return [*others, *((name.encode(), value.encode()) for name, value in ours.items())]


class _OpenTelemetrySpan(StreamSpan):
    """A span, whose chunks are spans within it."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer, self._span, self._chunks = tracer, span, 0

    def chunk(self, report: ChunkReport) -> None:
        """Add a span for the chunk, which ends now and began when the chunk's work did."""
        from opentelemetry.trace import set_span_in_context

        self._chunks += 1
        seconds = {
            "denoise": report.denoise_seconds, "clean": report.clean_seconds, "decode": report.decode_seconds
        }  # fmt: skip
        now = time.time_ns()
        told: dict[str, int | float] = {"videomla.chunk": report.chunk, "videomla.frames": report.frames}
        told |= {f"videomla.{name}_seconds": value for name, value in seconds.items()}
        span = self._tracer.start_span(
            "chunk", set_span_in_context(self._span), start_time=now - int(sum(seconds.values()) * 1e9),
            attributes=told,
        )  # fmt: skip
        span.end(now)

    def end(self, status: str) -> None:
        """End the span of the stay."""
        from opentelemetry.trace import StatusCode

        self._span.set_attributes({"videomla.status": status, "videomla.chunks": self._chunks})
        if status == "failed":
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def traced_to(url: str) -> Tracing:
    """Tracing that sends its spans to the collector at `url` (OTLP over HTTP).

    Raises:
        UserError: if OpenTelemetry or its exporter is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise missing_extra("opentelemetry-exporter-otlp-proto-http", "otel") from error
    return OpenTelemetryTracing(OTLPSpanExporter(endpoint=url))
