"""Results of `vmla-bench caches`, as far as a report shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from bench.report.schema.parts import Count, Document, Number, Positive


@dataclass(frozen=True, kw_only=True)
class WindowFrames:
    """Latent frames that every pass attends to."""

    sink: Count
    history: Count


@dataclass(frozen=True, kw_only=True)
class ChunkAlong:
    """One chunk of a video."""

    second: Positive
    chunk_ms: Number
    bytes: Count
    apart: Number


@dataclass(frozen=True, kw_only=True)
class CacheForm:
    """One form of the cache."""

    cache: str
    bytes_per_token_and_layer: Count
    bytes_per_video: Count
    error: Number
    drift: dict[str, Number]
    frames_per_second: Number
    time_over_latent: Positive
    spread: Number
    differs: bool
    along: Annotated[tuple[ChunkAlong, ...], Field(min_length=2)]


@dataclass(frozen=True, kw_only=True)
class CachesResults(Document):
    """Results of `vmla-bench caches`: one video with each form of the cache."""

    window: WindowFrames
    rows: Annotated[tuple[CacheForm, ...], Field(min_length=1)]
