"""`manifest.json` of an engine folder: what the engine is, and what it was built for.

This module does not import torch, so engines are listed and refused at once; `export.checks` refuses them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from export.engine.target import Host
from plugins.atomic_files import atomic_write_text
from plugins.documents.json_file import read_json
from plugins.documents.typed import Between, typed
from plugins.errors import UserError
from vmla.config import ModelConfig

NAME = "manifest.json"
SCHEMA = 5
OLDER = 4
"""The schema before, whose engines still run: their step takes all slots."""
CONTENT = "content"
"""The field that holds the SHA-256 of all others."""
AGAIN = "build the engine again"

EAGER = "eager"
"""Stands for the PyTorch model where an engine's folder or backend is named."""

Attention = Literal["plugin", "native", "fp8"]
"""Self-attention as one node for our TensorRT plugin, as an operation that every backend has, or as that
operation on float8 codes of queries, keys and values."""

StepWindow = Literal["held", "all"]
"""Which slots of the cache the step takes: those that hold a frame, so that nothing is masked, or all, with a
mask. Slots fill in order, so those that hold a frame are always the first ones."""

SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
"""A name of a program or a file that stays inside its folder."""


def engine_store() -> Path | None:
    """The user's own folder, where engines are written and looked for by default.

    An engine is a program, so none is run only because it lies in the working directory. None for a user
    without a home.
    """
    data = os.environ.get("XDG_DATA_HOME", "")
    try:
        own = Path(data) if data.startswith("/") else Path.home() / ".local" / "share"
    except RuntimeError:
        return None
    return own / "videomla" / "engines"


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, shape and dtype of an input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """Torch's name of it: `float32`, `bfloat16`, `int32`."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Inputs and outputs of a program, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """The rollouts on which a model is observed; scales come from them."""

    prompts: tuple[str, ...]
    seed: int
    """Seed of the first prompt's video; each further one adds 1."""
    chunks: int


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How an fp8 or nvfp4 engine was quantised."""

    base: str
    """The precision of all other products."""
    products: str
    """How the engine multiplies codes, in words."""
    calibration: Rollouts


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An engine's description of itself."""

    schema: int = SCHEMA
    backend: str
    precision: str
    attention: Attention
    window: StepWindow = "all"
    """`programs` has the shapes of a full window; a step that takes the held slots alone takes fewer, too."""
    regional: bool = False
    """Whether one layer was compiled for all, with their weights beside it; engines built before it was a
    choice were compiled whole."""
    batch: Annotated[int, Between(1, 2**12)]
    model_hash: str
    """SHA-256 of the transformer's configuration and weights."""
    checkpoint: str
    """Name of a shipped checkpoint, or a path. Text encoder and codec are loaded from there."""
    code: str
    """SHA-256 of the sources that made the programs.

    `runtime` and `export.loading` are not among them. They call programs and are in none; what the runtime
    adds to a video, noise, sampler steps and commits, is the same for every engine and is not compiled. Its
    rollouts also measure the scales
    of fp8, but these are a file of the engine with a hash of its own, and no less true of the model after an
    edit of what measured them.
    """
    model: dict[str, Any]
    """The model's sizes, by the fields of `vmla.config.ModelConfig`."""
    cache: dict[str, Any]
    """The fields of `vmla.cache.CacheSpec`, and `dtype`."""
    programs: dict[str, Signature]
    layers: dict[str, tuple[str, ...]]
    """All linear layers, by the precision of their products."""
    quantization: Quantization | None = None
    """None unless the precision is fp8 or nvfp4."""
    compiler: dict[str, Any] = field(default_factory=dict)
    """Options of the backend's compiler that are not its defaults."""
    host: Host
    """The machine that the engine was built for."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file of the engine, by its name."""

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of the engine in `folder`.

        Raises:
            UserError: if there is none, or none that this version understands.
        """
        path = folder / NAME
        if not path.exists():
            mend = "build one with: vmla-export build"
            raise UserError(f"{folder} is not an engine: {path} is missing; {mend}")
        values = read_json(path, mend=AGAIN)
        if (found := values.get("schema")) not in (SCHEMA, OLDER):
            raise UserError(
                f"{path}: schema is {found!r:.40}, this version reads {OLDER} and {SCHEMA}; {AGAIN}"
            )
        if values.pop(CONTENT, None) != _hash(values):
            raise UserError(f"{path} was changed after the engine was built; {AGAIN}")
        manifest = typed(values, cls, str(path), mend=AGAIN)
        for name in (*manifest.files, *manifest.programs):
            if not SAFE_NAME.fullmatch(name):
                raise UserError(f"{path}: {name!r:.40} leads out of the folder; {AGAIN}")
        return replace(manifest, model=ModelConfig.from_dict(manifest.model, str(path)).to_dict())

    def write(self, folder: Path) -> None:
        """Write it into `folder` at once, with the hash that binds it."""
        values = asdict(self)
        atomic_write_text(folder / NAME, json.dumps({**values, CONTENT: _hash(values)}, indent=2) + "\n")

    def same_build(self, other: Manifest) -> bool:
        """Whether both describe the same build, whatever their files."""
        ours, theirs = asdict(self), asdict(other)
        return all(ours[name] == theirs[name] for name in ours if name not in ("files", "checkpoint"))


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
