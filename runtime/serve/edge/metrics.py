"""Figures of the server, as Prometheus collects them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from runtime.device.memory import resident_bytes
from runtime.prompts.sources import Receipt
from runtime.telemetry.events import ChunkReport

# Prometheus counts how many values lie below each bound and interpolates quantiles between bounds. They are
# dense where it matters: around 0.75 s, the length of a chunk, above which a video falls behind its clock.
CHUNK_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)
"""Bounds of the histogram of the seconds that a chunk takes."""
FIRST_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0)
"""Bounds of the histogram of the seconds from a request to its first frame."""
STATES = ("queued", "ready", "paused", "completed", "stopped", "failed")


class Metrics:
    """The metrics of one server, in a registry of its own; it listens to every stream as its telemetry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry, "namespace": "videomla"}
        self.chunks = Counter("chunks", "Chunks made.", **made)
        self.frames = Counter("frames", "Frames made.", **made)
        self.chunk_seconds = Histogram(
            "chunk_seconds", "Denoising, clean pass and decoding of a chunk.", buckets=CHUNK_SECONDS, **made
        )
        self.first_frame = Histogram(
            "first_frame_seconds", "From session.start to the first frame.", buckets=FIRST_SECONDS, **made
        )
        self.misses = Counter("deadline_misses", "Chunks that came after their viewer ran dry.", **made)
        self.prompts = Counter("prompts", "Changes of prompt, by what became of them.", ["state"], **made)
        self.sent = Counter("sent_bytes", "Bytes of video handed to viewers.", **made)
        self.refused = Counter("refused", "Requests and messages refused, by code.", ["code"], **made)
        self.admitted = Counter("admitted", "Streams that took a place in memory.", **made)
        self.released = Counter("released", "Streams that gave it back.", **made)
        self.streams = Gauge("streams", "Streams and jobs, by state.", ["kind", "state"], **made)
        self.resident = Gauge("resident_streams", "Streams in memory.", **made)
        self.places = Gauge("places", "Streams that memory holds.", **made)
        self.waiting = Gauge("waiting", "Jobs that wait for a place.", **made)
        self.viewers = Gauge("viewers", "Viewers that are connected.", **made)
        self.memory = Gauge("resident_memory_bytes", "Main memory of the process.", **made)
        self.memory.set_function(resident_bytes)

    def chunk(self, report: ChunkReport) -> None:
        """Count a chunk that was made."""
        self.chunks.inc()
        self.chunk_seconds.observe(report.denoise_seconds + report.clean_seconds + report.decode_seconds)

    def prompt(self, state: str, receipt: Receipt) -> None:
        """Count a change of prompt that was accepted, applied or superseded."""
        self.prompts.labels(state).inc()

    def count_streams(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Set the number of streams, by kind and state."""
        for kind in ("session", "video"):
            for state in STATES:
                self.streams.labels(kind, state).set(counts.get((kind, state), 0))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
