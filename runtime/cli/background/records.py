"""What the user's store knows beside an engine: where its build logs, how it went, what the engine gains.

`NAME.log`, `NAME.build.json` and `NAME.speed.json` lie beside the engine's folder `NAME`. None of them is
part of an engine; whoever removes them loses what was measured, and builds that failed are tried again.
"""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from plugins.atomic_files import beside
from plugins.documents.json_file import read_json
from plugins.documents.typed import Between, typed
from plugins.errors import UserError
from vmla.cli.machine import hardware
from vmla.weights.checkpoint import Checkpoint
from vmla.weights.formats.files import shards_of, write_json

MOST_BUILDS = 2
"""Builds of one engine that may end without a word, by `kill -9`, a full memory or a power cut, before no
more are begun unasked."""
SPEED = ".speed.json"
POSITIVE = Between(1e-9, 1e9)

log = logging.getLogger(__name__)


def log_path(folder: Path) -> Path:
    """Where the build of the engine in `folder` says how it goes."""
    return beside(folder, ".log")


@dataclass(frozen=True, kw_only=True)
class Builds:
    """Builds of an engine in the background that gave none: so many were begun, and one may have failed."""

    model_hash: str
    versions: dict[str, str]
    begun: Annotated[int, Between(0, 2**31)] = 0
    failure: str | None = None

    @classmethod
    def of(cls, folder: Path, model_hash: str) -> Builds:
        """Those of the engine in `folder`, by these versions; none of another model or version count."""
        versions = {name: version(name) for name in ("videomla", "torch")}
        none = cls(model_hash=model_hash, versions=versions)
        path = cls.path(folder)
        if not path.exists():
            return none
        try:
            known = typed(read_json(path), cls, str(path))
        except UserError as refusal:
            log.info("%s", refusal)
            return none
        return known if replace(known, begun=0, failure=None) == none else none

    @staticmethod
    def path(folder: Path) -> Path:
        """The file that records them."""
        return beside(folder, ".build.json")

    def write(self, folder: Path) -> None:
        """Record them for the engine in `folder`."""
        write_json(self.path(folder), asdict(self))

    def why_no_more(self) -> str | None:
        """Why no more are begun unasked; None if one may be."""
        if self.failure is not None:
            return f"it failed: {self.failure}"
        return f"{self.begun} builds did not come to their end" if self.begun >= MOST_BUILDS else None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an engine gains, measured where it was built."""

    checkpoint: str
    weight_bytes: Annotated[int, Between(1, 2**60)]
    """Of the transformer."""
    threads: Annotated[int, Between(1, 2**16)]
    build_seconds: Annotated[float, POSITIVE]
    eager_seconds: Annotated[float, POSITIVE]
    """Of a step of the PyTorch model in a full window."""
    engine_seconds: Annotated[float, POSITIVE]
    """Of the engine's."""
    machine: str
    """The processor and its number of cores, as `vmla.cli.machine.hardware` names them."""

    @property
    def times_as_fast(self) -> float:
        """The engine's speed over the model's."""
        return self.eager_seconds / self.engine_seconds

    @property
    def gain(self) -> str:
        """How the engine's speed compares, in words."""
        return f"{self.times_as_fast:.2f} times as fast as the PyTorch model"

    def line(self) -> str:
        """What was measured, for a person."""
        return f"it is {self.gain}: {1e3 * self.engine_seconds:.1f} ms a pass"

    def write(self, folder: Path) -> None:
        """Record it beside the engine in `folder`."""
        write_json(beside(folder, SPEED), asdict(self))


def nearest_measured(store: Path, weight_bytes: int) -> Measured | None:
    """Of the engines that were measured on a machine like this, the one of the most similar size."""
    here, found = hardware(), list[Measured]()
    for path in sorted(store.glob(f"*{SPEED}")):
        try:
            known = typed(read_json(path), Measured, str(path))
        except UserError as refusal:
            log.info("%s", refusal)
            continue
        if known.machine == here:
            found.append(known)
    return min(found, key=lambda one: abs(math.log(one.weight_bytes / weight_bytes)), default=None)


def weight_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the transformer's weights on disk."""
    return sum(shard.stat().st_size for shard in shards_of(checkpoint.weights_path("transformer")))


def place_of(store: Path, name: str, model_hash: str) -> Path:
    """The folder in `store` called `name`; if that is there, one named by weights, version and processor too.

    So an engine built unasked takes the place of no other, which may be another model's, or one that fits on
    another machine with the same home.
    """
    folder = store / name
    if not folder.exists():
        return folder
    made_for = f"{model_hash}, {version('torch')}, {hardware()}"
    return store / f"{name}-{hashlib.sha256(made_for.encode()).hexdigest()[:8]}"
