"""Results of the benchmarks of quality and of studies, as far as a report shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from bench.quality.drift import MEASURES
from bench.report.schema.parts import Count, Document, Mark, MeanDeviation, Number, Positive, Share
from plugins.errors import UserError
from vmla.world.grader.grade import QUESTIONS


@dataclass(frozen=True, kw_only=True)
class GradesResults(Document):
    """Results of `vmla-bench grades`: shares of prompts that pass, by second."""

    prompts: Count
    grades: Annotated[dict[Mark, dict[str, Number]], Field(min_length=1)]

    def __post_init__(self) -> None:
        if len({tuple(sorted(row)) for row in self.grades.values()}) > 1:
            raise UserError("grades answers other questions at one second than at another")


Shares = dict[str, Number]
"""Shares of right answers, by question."""


@dataclass(frozen=True, kw_only=True)
class DiagnoseResults(Document):
    """Results of `vmla-bench diagnose`: shares that pass, by stage and group of prompts."""

    first_chunks: dict[str, dict[str, Shares]] = Field(default_factory=dict)
    stages: dict[str, dict[str, Shares]] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GraderResults(Document):
    """Results of the grader's own test, on videos whose answers are known."""

    scenes: Count
    accuracy: Shares
    accuracy_degraded: Shares


@dataclass(frozen=True, kw_only=True)
class Point:
    """A moment of a model's videos."""

    second: Number
    right: dict[str, Number]
    saturation: Number
    luma: Number
    sharpness: Number
    motion: Number

    def __post_init__(self) -> None:
        _refuse_unasked(self.right)


@dataclass(frozen=True, kw_only=True)
class LayoutModel:
    """One of several models side by side."""

    model: str
    steps: Count
    cached_numbers: Count
    grades: dict[Mark, dict[str, Number]]
    drift: dict[str, Number]
    curve: tuple[Point, ...]
    frames_per_second: Number | None = None

    def __post_init__(self) -> None:
        for row in self.grades.values():
            _refuse_unasked({**row})
            if "all" not in row:
                raise UserError("grades does not say what passes all")
        if self.drift and not self.drift.keys() >= set(MEASURES):
            raise UserError("drift lacks a measure")


@dataclass(frozen=True, kw_only=True)
class LayoutsResults(Document):
    """Results of `vmla-bench layouts`: models side by side."""

    prompts: Count
    models: tuple[LayoutModel, ...]

    def __post_init__(self) -> None:
        if len({tuple(sorted(model.grades)) for model in self.models}) > 1:
            raise UserError("models are graded at different seconds")
        if len({bool(model.drift) for model in self.models}) > 1:
            raise UserError("some models drift, of others it is not known")


@dataclass(frozen=True, kw_only=True)
class LayerRanks:
    """Effective ranks of one matrix of one layer, by the share of energy that is kept."""

    matrix: str
    layer: Count
    ranks: dict[Share, Number]
    full_rank: Positive


@dataclass(frozen=True, kw_only=True)
class SpectrumCheckpoint:
    """Effective ranks of one model."""

    checkpoint: str
    layout: str
    layers: tuple[LayerRanks, ...]
    medians: Annotated[dict[str, dict[Share, Number]], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class SpectrumResults(Document):
    """Results of `vmla-bench spectrum`: effective ranks of the key and value weights."""

    checkpoints: Annotated[tuple[SpectrumCheckpoint, ...], Field(min_length=1)]

    def __post_init__(self) -> None:
        if len({tuple(ranks) for one in self.checkpoints for ranks in one.medians.values()}) > 1:
            raise UserError("medians have ranks at other shares in one matrix than in the next")


@dataclass(frozen=True, kw_only=True)
class QualitySummary:
    """The paper's figure: the plain mean of six dimensions of VBench."""

    six_metric_mean: Number


@dataclass(frozen=True, kw_only=True)
class QualityResults(Document):
    """Results of `vmla-bench quality`: VBench's scores by dimension."""

    scores: dict[str, Number]
    summary: QualitySummary


@dataclass(frozen=True, kw_only=True)
class MeanGrade:
    """Mean and deviation of the grades over the seeds of an arm."""

    mean: MeanDeviation


GradesOverTime = dict[Mark, MeanGrade]
"""The grades of one training stage, or step, by second of the video."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm of a study, over its seeds."""

    arm: str
    questions: tuple[str, ...]
    entry_width: Count
    loss: MeanDeviation
    seeds: Count
    grades: dict[str, GradesOverTime]
    along: dict[Mark, GradesOverTime]

    def __post_init__(self) -> None:
        if "denoiser" not in self.grades:
            raise UserError("grades says nothing of the denoiser")
        if self.along and "0" not in self.along:
            raise UserError("along does not begin at step 0")


@dataclass(frozen=True, kw_only=True)
class StudyResults(Document):
    """Results of `vmla-bench study`: every arm over its seeds."""

    compared: tuple[Arm, ...]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The results of one way to convert, over the models."""

    variant: str
    energy: dict[str, MeanDeviation]
    output_error: MeanDeviation
    worst_layer: MeanDeviation
    loss: MeanDeviation
    healed: MeanDeviation | None
    over_defaults: MeanDeviation
    models: Count

    def __post_init__(self) -> None:
        if self.energy and not self.energy.keys() >= {"keys and values", "rotary keys", "queries"}:
            raise UserError("energy lacks a part")


@dataclass(frozen=True, kw_only=True)
class ConversionResults(Document):
    """Results of `vmla-bench conversion`: every way to convert, over the models."""

    heal: Count
    per_head_loss: MeanDeviation
    compared: tuple[Variant, ...]

    def __post_init__(self) -> None:
        if self.heal and any(one.healed is None for one in self.compared):
            raise UserError("compared lacks a loss after healing")


def _refuse_unasked(answers: dict[str, float]) -> None:
    if missing := [question for question in QUESTIONS if question not in answers]:
        raise UserError(f"the question {missing[0]} is not answered")
