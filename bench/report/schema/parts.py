"""Numbers, shares and rows that several kinds of results have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

Number = Annotated[float, Field(ge=-1e30, le=1e30)]
Positive = Annotated[float, Field(ge=1e-30, le=1e30)]
Count = Annotated[int, Field(ge=0, le=2**62)]
Mark = Annotated[str, Field(pattern=r"^\d{1,9}$")]
"""A second or a step, as JSON's objects have it for a key."""
Share = Annotated[str, Field(pattern=r"^\d{1,9}(\.\d{1,30})?$")]
Layout = Literal["mha", "mla"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine that measured."""

    hardware: str | None = None
    gpu: str | None = None


@dataclass(frozen=True, kw_only=True)
class Versions:
    """Versions of the packages that measured it."""

    torch: str


@dataclass(frozen=True, kw_only=True)
class Document:
    """The fields of every results file."""

    kind: str
    version: int
    date: str
    commit: str
    machine: Machine
    versions: Versions
    complete: bool = True
    command: str | None = None
    subject: str | None = None
    checkpoint: str | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class RateFigures:
    """Operations, bytes or tokens in a second."""

    per_second: Positive


@dataclass(frozen=True, kw_only=True)
class MeanDeviation:
    """Mean and standard deviation of a figure over seeds or models."""

    mean: Number
    deviation: Number


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A row without figures, with the reason."""

    refused: str
    engine: str = ""
    precision: str = ""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Times of a chunk, in milliseconds."""

    p50: Positive
    p95: Number
    p99: Number


@dataclass(frozen=True, kw_only=True)
class EngineFigures:
    """Speed and error of one engine."""

    engine: str
    precision: str
    frames_per_second: Number
    spread: Number
    time_over_baseline: Positive
    differs: bool
    chunk_ms: Times
    share_of_matrix_peak: Number | None
    first_frame_seconds: Number | None = None
    peak_bytes: Number | None = None
    error_velocity: Number | None = None


@dataclass(frozen=True, kw_only=True)
class KernelShape:
    """The sizes and the type of a kernel's inputs."""

    batch: Count
    keys: Count


@dataclass(frozen=True, kw_only=True)
class KernelFigures:
    """Speed and error of one kernel."""

    arm: str
    dtype: str
    shape: KernelShape
    median_ms: Number
    tflops: Number
    time_over_sdpa: Number
    error: Number


def which(row: Any) -> str:
    """The tag of a row: `measured`, or `refused` if it says why it has no figures."""
    return "refused" if isinstance(row, dict) and "refused" in row else "measured"


EngineRow = Annotated[
    Annotated[EngineFigures, Tag("measured")] | Annotated[Refused, Tag("refused")], Discriminator(which)
]
KernelRow = Annotated[
    Annotated[KernelFigures, Tag("measured")] | Annotated[Refused, Tag("refused")], Discriminator(which)
]
