"""Results of the benchmark of the server."""

from __future__ import annotations

from dataclasses import dataclass

from bench.report.schema.parts import Count, Document, Number, Positive


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Percentiles of a time in seconds."""

    p50: Number
    p95: Number
    p99: Number


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """Results with a number of streams at once, each with a viewer."""

    streams: Count
    alone_frames_per_second: Positive
    """Frames per second of the same videos without a server."""
    frames_per_second: Positive
    share_of_alone: Positive
    first_frame_seconds: Percentiles
    gap_seconds: Percentiles
    """Seconds between one chunk and the next, as a viewer sees them."""
    late_share: Number
    """Share of the chunks that came after the viewer had played all it had."""


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """Median and worst of a repeated action, in milliseconds."""

    median_ms: Positive
    worst_ms: Positive


@dataclass(frozen=True, kw_only=True)
class Connects:
    """Viewers who came and went."""

    count: Count
    per_second: Positive
    left: dict[str, int]
    """Files, threads and bytes that the process holds more than before."""


@dataclass(frozen=True, kw_only=True)
class ServeResults(Document):
    """Results of `vmla-bench serve`: viewers, visits and moves of streams."""

    frames: Count
    crowds: tuple[Crowd, ...]
    connects: Connects
    state_moved: Repeated
    hand_over: Repeated
    fork: Repeated
    cold_return: Repeated
    ray_hop: Repeated | None = None
    """Milliseconds that Ray adds to a request; None where it was not measured."""
