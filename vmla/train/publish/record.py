"""The record of a training in a checkpoint folder, and the results that its model card quotes, checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from plugins.documents.json_file import read_json
from plugins.documents.typed import Between, typed
from plugins.errors import UserError
from vmla.scheduler import Sampler

TRAINING = "training.json"
"""The record's file name in a checkpoint folder."""
Count = Annotated[int, Between(0, 2**53)]
Share = Annotated[float, Between(0, 1)]


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """The field of a stage's record that is added up."""

    seconds: Annotated[float, Between(0, 2**53)]


@dataclass(frozen=True, kw_only=True)
class Begun:
    """The fields of a training's record that later stages are added to."""

    recipe: str
    stages: dict[str, StageTime]


@dataclass(frozen=True, kw_only=True)
class StageRecord(StageTime):
    """The fields that are read of what one stage took."""

    steps: Count
    loss: float


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The field that is read of a stage's schedule."""

    steps: Count


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The field that is read of how a stage trains."""

    schedule: Schedule


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """The fields that are read of the settings in the state of a stage."""

    training: TrainingSettings
    data: Any


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """How many clips a stage drew, and by which seed."""

    clips: Annotated[int, Between(1, 2**53)]
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """The words of a text encoder's vocabulary; none for one that reads bytes."""

    words: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RecipeSettings:
    """The fields that are read of a recipe's settings."""

    text: TextSettings = field(default_factory=TextSettings)
    latents: ClipSettings | None = None
    refinement_latents: ClipSettings | None = None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The field of a training's record that says what it was trained on."""

    settings: RecipeSettings


@dataclass(frozen=True, kw_only=True)
class TrainingRecord(Trained):
    """The fields that are read of a training's record."""

    recipe: str
    commit: str
    seed: int
    hours: Annotated[float, Between(0, 2**53)]
    hardware: str
    torch: str
    stages: dict[str, StageRecord]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The grades of the prompts with as many objects."""

    graded: Count
    grades: dict[str, dict[str, Share]]

    def __post_init__(self) -> None:
        _check_table(self.grades)


@dataclass(frozen=True, kw_only=True)
class GradesRecord:
    """The fields that are read of the results of `vmla-bench grades`."""

    checkpoint: str
    prompts: Count
    sampler: Sampler
    grades: dict[str, dict[str, Share]]
    groups: dict[str, Group] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        _check_table(self.grades)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The fields that are read of the results of `vmla-bench grader`."""

    scenes: Count
    accuracy: dict[str, Share]
    world: str = ""

    def __post_init__(self) -> None:
        if not self.accuracy:
            raise UserError("field accuracy is empty")


def read_checked(path: Path, kind: type[Any]) -> dict[str, Any]:
    """The object in a JSON file that has the fields of the dataclass `kind`, and perhaps others.

    Raises:
        UserError: naming the field that is missing or of another type.
    """
    values = read_json(path)
    typed(values, kind, str(path), others="ignore")
    return values


def _check_table(table: dict[str, dict[str, float]]) -> None:
    """Refuse a table of grades by second that lacks a question, or has a row for what is no second."""
    from vmla.world.grader.grade import QUESTIONS

    for second, row in table.items():
        if not (second.isdecimal() and len(second) < 10):
            raise UserError(f"field grades has a row {second!r}; rows are whole seconds")
        if missing := [question for question in (*QUESTIONS, "all") if question not in row]:
            raise UserError(f"field grades.{second}.{missing[0]} is missing")
    if not table:
        raise UserError("field grades is empty")
