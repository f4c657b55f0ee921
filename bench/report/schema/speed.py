"""Results of the benchmarks of speed and memory, as far as a report shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from bench.report.schema.parts import (
    Count,
    Document,
    EngineRow,
    KernelRow,
    Layout,
    Number,
    Positive,
    RateFigures,
)
from plugins.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EnginesResults(Document):
    """Results of `vmla-bench engines`: engines timed against a baseline."""

    baseline: str
    rows: tuple[EngineRow, ...]


@dataclass(frozen=True, kw_only=True)
class FloorFigures:
    """The time that a chunk takes at least."""

    layout: str
    form: str
    precision: str
    chunk_seconds: Number
    frames_per_second: Number


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far an engine is from its floor."""

    engine: str
    precision: str
    frames_per_second: Number
    times_the_floor: Number


@dataclass(frozen=True, kw_only=True)
class PassPart:
    """A part of a pass: its operations, and how many numbers they touch."""

    flops: Positive
    numbers: Positive


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The parts of a pass by name."""

    layout: str
    form: str
    parts: dict[str, PassPart]


@dataclass(frozen=True, kw_only=True)
class MachinePeaks:
    """Peak rates of matrix products by precision, and of copying."""

    matrix: Annotated[dict[str, RateFigures], Field(min_length=1)]
    copy: RateFigures


@dataclass(frozen=True, kw_only=True)
class RooflineResults(Document):
    """Results of `vmla-bench roofline`: the least time of a chunk, and the engines' distance from it."""

    floors: tuple[FloorFigures, ...] = ()
    gaps: tuple[Gap, ...] = ()
    passes: tuple[Pass, ...] = ()
    peaks: MachinePeaks | None = None


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The cache of one layout."""

    bytes_per_token_and_layer: Number
    bytes_per_video: Number


@dataclass(frozen=True, kw_only=True)
class StreamCapacity:
    """How many videos of a layout fit."""

    layout: Layout
    streams: Count
    weights_bytes: Number
    memory_bytes: Number


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The two layouts' caches compared."""

    less: Number
    times_smaller: Number


@dataclass(frozen=True, kw_only=True)
class PassMemory:
    """Memory that one pass takes."""

    arm: str
    window: str
    batch: Count
    peak_bytes: Number | None


@dataclass(frozen=True, kw_only=True)
class MemoryResults(Document):
    """Results of `vmla-bench memory`: caches, peaks, and streams that fit."""

    caches: dict[Layout, Cache]
    streams: Annotated[tuple[StreamCapacity, ...], Field(min_length=1)]
    compared: Compared
    passes: tuple[PassMemory, ...] = ()

    def __post_init__(self) -> None:
        if missing := self.caches.keys() - {row.layout for row in self.streams}:
            raise UserError(f"streams says nothing of the layout {min(missing)}")


@dataclass(frozen=True, kw_only=True)
class WindowGrades:
    """The grades of a window of a video."""

    all: bool


@dataclass(frozen=True, kw_only=True)
class WindowMeasures:
    """A window of a video: see `bench.quality.drift.measures`."""

    second: Number
    saturation: Number
    luma: Number
    sharpness: Number
    motion: Number
    grades: WindowGrades | None = None


@dataclass(frozen=True, kw_only=True)
class ChunkFigures:
    """Times of a rollout's chunks."""

    second: Number
    chunk_seconds: Number
    resident_bytes: Number


@dataclass(frozen=True, kw_only=True)
class RolloutResults(Document):
    """Results of `vmla-bench rollout`: a whole video, from the command to the file."""

    wall_seconds: Number
    first_frame_seconds: Number
    frames_per_second: Number
    times_real_time: Number
    peak_bytes: Number
    drift: dict[str, Number] = Field(default_factory=dict)
    picture: tuple[WindowMeasures, ...] = ()
    chunks: tuple[ChunkFigures, ...] = ()

    def __post_init__(self) -> None:
        if len({point.grades is None for point in self.picture}) > 1:
            raise UserError("picture has grades at some seconds and none at others")


@dataclass(frozen=True, kw_only=True)
class RuntimeResults(Document):
    """Results of `vmla-bench runtime`: the runtime beside a plain loop."""

    frames_per_second: dict[str, Number]
    saving_costs: Number
    resume_adds_seconds: Number
    chunk_p99_over_p50: Number


@dataclass(frozen=True, kw_only=True)
class KernelsResults(Document):
    """Results of `vmla-bench kernels`: kernels against the library's attention."""

    rows: tuple[KernelRow, ...]
