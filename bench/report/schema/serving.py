"""Results of the benchmark of the server."""

from __future__ import annotations

from dataclasses import dataclass

from bench.report.schema.parts import Count, Document, Number, Positive


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Seconds."""

    p50: Number
    p95: Number
    p99: Number


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """What was measured with a number of streams at once, each with a viewer."""

    streams: Count
    alone_frames_per_second: Positive
    """Of the same videos without a server."""
    frames_per_second: Positive
    share_of_alone: Positive
    first_frame_seconds: Percentiles
    gap_seconds: Percentiles
    """Between one chunk and the next."""
    late_share: Number
    """Of the chunks, those that came after the viewer ran dry."""


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """Milliseconds."""

    median_ms: Positive
    worst_ms: Positive


@dataclass(frozen=True, kw_only=True)
class Connects:
    """Viewers who came and went."""

    count: Count
    per_second: Positive
    left: dict[str, int]
    """Files, threads and bytes more than before."""


@dataclass(frozen=True, kw_only=True)
class ServeResults(Document):
    """`vmla-bench serve`."""

    frames: Count
    crowds: tuple[Crowd, ...]
    connects: Connects
    state_moved: Repeated
    hand_over: Repeated
    fork: Repeated
    cold_return: Repeated
    ray_hop: Repeated | None = None
    """What Ray adds to a request; None where it was not measured."""
