"""Results of `vmla-bench gpu`, as far as a report shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Discriminator, Field, Tag

from bench.report.schema.parts import (
    Count,
    Document,
    EngineFigures,
    EngineRow,
    KernelRow,
    Layout,
    Number,
    Positive,
    RateFigures,
    Refused,
    which,
)


@dataclass(frozen=True, kw_only=True)
class Range:
    """Readings of a GPU clock under load."""

    least: Number
    median: Number
    most: Number


@dataclass(frozen=True, kw_only=True)
class ClockFigures:
    """The clocks of a GPU while a measurement ran, or why they could not be read."""

    refused: str | None = None
    sm_mhz: Range | None = None
    memory_mhz: Range | None = None
    watts: Range | None = None
    celsius: Range | None = None
    limited_by: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MeasurementResults:
    """Fields of every measurement: why it has no figures or ended early, and the clocks' readings."""

    refused: str | None = None
    stopped: str | None = None
    clocks: ClockFigures | None = None


@dataclass(frozen=True, kw_only=True)
class EngineResults(MeasurementResults):
    """Engines that were measured in turns."""

    rows: tuple[EngineRow, ...] = ()
    baseline: EngineFigures | None = None


@dataclass(frozen=True, kw_only=True)
class GraphRow:
    """A chunk with CUDA graphs."""

    layout: Layout
    frames_per_second: Number
    spread: Number


@dataclass(frozen=True, kw_only=True)
class GraphResults(MeasurementResults):
    """Chunks with CUDA graphs, a row for each layout."""

    rows: tuple[GraphRow, ...] = ()


@dataclass(frozen=True, kw_only=True)
class KernelResults(MeasurementResults):
    """Kernels at the model's size."""

    rows: tuple[KernelRow, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GpuPeaks(MeasurementResults):
    """Peak rates of the GPU."""

    products: dict[str, RateFigures] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel of one chunk, by its name."""

    kernel: str
    part: str
    count: Count
    ms: Number


@dataclass(frozen=True, kw_only=True)
class KernelGaps:
    """The times in which the device did nothing."""

    count: Count
    ms: Number
    most_us: Number = 0.0


@dataclass(frozen=True, kw_only=True)
class Sustained:
    """Chunks one after the other for seconds."""

    first_tenth_ms: Number
    last_tenth_ms: Number


@dataclass(frozen=True, kw_only=True)
class ProfileResults(MeasurementResults):
    """One chunk by part and by kernel, with the gaps between kernels."""

    sustained: Sustained | None = None
    device_ms: Number | None = None
    launched_kernels: Count = 0
    parts: dict[str, Number] = Field(default_factory=dict)
    gaps: KernelGaps | None = None
    kernels: tuple[Kernel, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ItemFigures:
    """Times of a chunk with an item and without."""

    item: str
    with_ms: Number
    without_ms: Number
    time_without_over_with: Number
    spread: Number


@dataclass(frozen=True, kw_only=True)
class ItemRefused:
    """Why an item has no figures."""

    item: str
    refused: str


@dataclass(frozen=True, kw_only=True)
class ItemResults(MeasurementResults):
    """Every item with and without."""

    rows: tuple[
        Annotated[
            Annotated[ItemFigures, Tag("measured")] | Annotated[ItemRefused, Tag("refused")],
            Discriminator(which),
        ],
        ...,
    ] = ()


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Frames per second: of the denoiser, with the clean pass, and decoded in main memory."""

    denoiser_fps: Number
    with_clean_pass_fps: Number
    frames_out_fps: Number


@dataclass(frozen=True, kw_only=True)
class WindowFigures(Rates):
    """Rates at one window and batch."""

    keys: Count
    batch: Count
    precision: str


@dataclass(frozen=True, kw_only=True)
class WindowRefused:
    """Why a window has no figures at a batch."""

    keys: Count
    batch: Count
    precision: str
    refused: str


@dataclass(frozen=True, kw_only=True)
class WindowResults(MeasurementResults):
    """Both windows, one video and two."""

    rows: tuple[
        Annotated[
            Annotated[WindowFigures, Tag("measured")] | Annotated[WindowRefused, Tag("refused")],
            Discriminator(which),
        ],
        ...,
    ] = ()


@dataclass(frozen=True, kw_only=True)
class NarrowFigures:
    """A chunk with float8 layers over one without, and its error in one pass against float32."""

    engine: str
    median_ms: Number
    wide_median_ms: Number
    time_over_wide: Positive
    spread: Number
    error_velocity: Number


@dataclass(frozen=True, kw_only=True)
class Accumulated(RateFigures):
    """A product of float8 codes, by one way to add up."""

    product: str
    fast: bool
    error: Number


@dataclass(frozen=True, kw_only=True)
class Float8Results(MeasurementResults):
    """Chunks and products in float8."""

    fast_accumulation: bool | None = None
    rows: tuple[
        Annotated[
            Annotated[NarrowFigures, Tag("measured")] | Annotated[Refused, Tag("refused")],
            Discriminator(which),
        ],
        ...,
    ] = ()
    rates: (
        Annotated[
            Annotated[Rates, Tag("measured")] | Annotated[Refused, Tag("refused")], Discriminator(which)
        ]
        | None
    ) = None
    accumulation: tuple[Accumulated, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DriftResults(MeasurementResults):
    """Errors of a rollout against float32 by engine, chunk by chunk; each row also counts its chunk."""

    rows: tuple[dict[str, Number], ...] = ()
    worst: dict[str, Number] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GpuResults(Document):
    """`vmla-bench gpu`; measurements that no report shows are not checked."""

    features: tuple[str, ...] | None = None
    """Names of the features (`bench.gpu.arms.items`) that the measured code had."""
    chunk: EngineResults = EngineResults()
    compile: EngineResults = EngineResults()
    aoti: EngineResults = EngineResults()
    graphs: GraphResults = GraphResults()
    kernels: KernelResults = KernelResults()
    peaks: GpuPeaks | None = None
    profile: ProfileResults = ProfileResults()
    items: ItemResults = ItemResults()
    windows: WindowResults = WindowResults()
    fp8: Float8Results = Float8Results()
    fp8_long: WindowResults = WindowResults()
    drift: DriftResults = DriftResults()
