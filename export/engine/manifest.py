"""`manifest.json` of an engine folder: what the engine is, and what it was built for.

This module does not import torch, so engines are listed and refused at once; `export.checks` refuses them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from export.engine.target import Host
from plugins.atomic_files import atomic_write_text
from plugins.errors import UserError
from vmla.config import current_names

NAME = "manifest.json"
SCHEMA = 3


ENGINES = Path("engines")
"""The folder where engines are written and looked for by default."""

EAGER = "eager"
"""Said in the place of an engine's folder and of its backend where there is none: the model itself."""

Attention = Literal["plugin", "native"]
"""Self-attention as one node for our TensorRT plugin, or as operations that every backend supports."""


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
class Quantization:
    """How an fp8 or nvfp4 engine was quantised."""

    base: str
    """The precision of all other products."""
    products: str
    """How the engine multiplies codes, in words."""
    calibration: dict[str, Any]
    """The rollouts that the scales come from: `export.lowering.calibration.Rollouts`."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An engine's description of itself."""

    schema: int = SCHEMA
    backend: str
    precision: str
    attention: Attention
    batch: int
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
    """The fields of `vmla.config.ModelConfig`."""
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
        try:
            values = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{folder} is no engine: {path} is missing; build one with: vmla-export build") \
                from error  # fmt: skip
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not valid JSON ({error}); build the engine again") from error
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            found = values.get("schema") if isinstance(values, dict) else None
            raise UserError(f"{path}: schema is {found}, this version reads {SCHEMA}; build the engine again")
        return _from_json(values, path)

    def write(self, folder: Path) -> None:
        """Write it into `folder` at once."""
        atomic_write_text(folder / NAME, json.dumps(asdict(self), indent=2) + "\n")

    def same_build(self, other: Manifest) -> bool:
        """Whether both describe the same build, whatever their files."""
        ours, theirs = asdict(self), asdict(other)
        return all(ours[name] == theirs[name] for name in ours if name not in ("files", "checkpoint"))


def _from_json(values: dict[str, Any], path: Path) -> Manifest:
    """A manifest from JSON values: lists become tuples, objects become what they describe."""
    known = {field.name for field in fields(Manifest)}
    if wrong := sorted(values.keys() ^ known):
        state = "missing" if wrong[0] in known else "unknown"
        raise UserError(f"{path}: field {wrong[0]} is {state}; build the engine again")
    if any(Path(name).name != name for name in values["files"]):
        raise UserError(f"{path}: files: a name leads out of the folder; build the engine again")
    try:
        programs = {name: _signature(value) for name, value in values["programs"].items()}
        host = Host(**{**values["host"], "features": tuple(values["host"]["features"])})
        layers = {name: tuple(value) for name, value in values["layers"].items()}
        model = current_names(values["model"])  # an engine may be older than the names of its settings
        said = values["quantization"] and _quantization(values["quantization"])
    except (TypeError, KeyError, AttributeError) as error:
        reason = f"programs, layers or host are incomplete ({error})"
        raise UserError(f"{path}: {reason}; build the engine again") from error
    made = {"programs": programs, "host": host, "layers": layers, "model": model, "quantization": said}
    return Manifest(**{**values, **made})


def _quantization(value: dict[str, Any]) -> Quantization:
    watched = {**value["calibration"], "prompts": tuple(value["calibration"]["prompts"])}
    return Quantization(**{**value, "calibration": watched})


def _signature(value: dict[str, Any]) -> Signature:
    def specs(key: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in value[key])

    return Signature(inputs=specs("inputs"), outputs=specs("outputs"))
