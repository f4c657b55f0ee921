"""`manifest.json` of an engine folder: what the engine is, and where it may run.

Free of torch, so that engines are listed and refused at once.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from export.host import Host
from vmla.errors import UserError

NAME = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What an engine of a backend shares with the machine that runs it."""

    packages: tuple[str, ...]
    """Those that must have the very version that built it."""
    architecture: bool
    """Whether it was compiled for one processor or GPU."""


BACKENDS = {
    "aoti": Binding(packages=("torch",), architecture=True),
    "onnx": Binding(packages=(), architecture=False),
    "tensorrt-rtx": Binding(packages=("tensorrt_rtx",), architecture=True),
}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A tensor that goes in or comes out."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As torch calls it: `float32`, `bfloat16`, `int32`."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a program takes and gives, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An engine's description of itself."""

    schema: int = SCHEMA
    backend: str
    precision: str
    batch: int
    model_hash: str
    """SHA-256 of the transformer's configuration and weights."""
    checkpoint: str
    """Where the checkpoint was: a shipped name or a path. The text encoder and codec stay there."""
    model: dict[str, Any]
    """The fields of `vmla.config.ModelConfig`."""
    cache: dict[str, Any]
    """The fields of `vmla.cache.CacheLayout`, and `dtype`."""
    programs: dict[str, Signature]
    host: Host
    """The machine that it was built for."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 by name."""

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
        """Write it into `folder`, aside first and then renamed."""
        aside = folder / f"{NAME}.tmp"
        aside.write_text(json.dumps(asdict(self), indent=2) + "\n")
        aside.replace(folder / NAME)

    def same_build(self, other: Manifest) -> bool:
        """Whether both describe the same build, whatever their files."""
        ours, theirs = asdict(self), asdict(other)
        return all(ours[name] == theirs[name] for name in ours if name not in ("files", "checkpoint"))

    def build_command(self, folder: Path) -> str:
        """The command that builds this engine anew."""
        settings = f"--backend {self.backend} --precision {self.precision} --batch {self.batch}"
        device = "" if self.backend != "aoti" or self.host.device == "cpu" else f" --device {self.host.device}"
        target = f" --target {self.host.architecture}" if self.backend == "tensorrt-rtx" else ""
        where = f"--checkpoint {shlex.quote(self.checkpoint)} -o {shlex.quote(str(folder))}"
        return f"vmla-export build {where} {settings}{device}{target}"

    def check_host(self, here: Host, folder: Path) -> None:
        """Refuse a machine that the engine was not built for.

        Raises:
            UserError: naming the field that differs and the command that builds for this machine.
        """
        binding, built, mend = BACKENDS[self.backend], self.host, self.build_command(folder)
        for package in binding.packages:
            theirs, ours = built.versions.get(package), here.versions.get(package)
            if theirs != ours:
                found = f"{package} {ours}" if ours else f"no {package}"
                raise UserError(f"{folder}: versions: built with {package} {theirs}, here is {found}; run: {mend}")
        if not binding.architecture:
            return
        if built.architecture != here.architecture:
            raise UserError(
                f"{folder}: architecture: built for {built.architecture}, here is {here.architecture}; run: {mend}"
            )
        if missing := sorted(set(built.features) - set(here.features)):
            raise UserError(
                f"{folder}: features: it uses {missing[0]}, which this processor lacks; run: {mend}"
            )

    def check_model(self, model: Mapping[str, Any], model_hash: str, checkpoint: str, folder: Path) -> None:
        """Refuse a checkpoint that the engine was not built from.

        Raises:
            UserError: naming the first setting of the model that differs, or `model_hash`.
        """
        mend = shlex.join(["vmla-export", "build", "--checkpoint", checkpoint, "-o", str(folder)])
        for name, value in self.model.items():
            if model.get(name) != value:
                raise UserError(
                    f"{folder}: {name}: built for {value}, checkpoint {checkpoint} has {model.get(name)}; run: {mend}"
                )
        if model_hash != self.model_hash:
            raise UserError(
                f"{folder}: model_hash: built from other weights than those of {checkpoint}; run: {mend}"
            )

    def check_batch(self, batch: int, folder: Path) -> None:
        """Refuse a number of videos that the engine was not built for.

        Raises:
            UserError: naming both.
        """
        if batch != self.batch:
            mend = shlex.join(["vmla-export", "build", "--checkpoint", self.checkpoint, "--batch", str(batch)])
            raise UserError(f"{folder}: batch: built for {self.batch} videos at once, not {batch}; run: {mend}")

    def check_files(self, folder: Path) -> None:
        """Read every file and compare its hash.

        Raises:
            UserError: naming the file that is missing or damaged.
        """
        for name, expected in self.files.items():
            path = folder / name
            if not path.is_file():
                raise UserError(f"{path} is missing; run: {self.build_command(folder)}")
            if hash_file(path) != expected:
                raise UserError(
                    f"{path} is damaged: its SHA-256 is not that of the manifest; run: {self.build_command(folder)}"
                )


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_json(values: dict[str, Any], path: Path) -> Manifest:
    """A manifest from JSON values: lists become tuples, objects become what they describe."""
    known = {field.name for field in fields(Manifest)}
    if wrong := sorted(values.keys() ^ known):
        state = "missing" if wrong[0] in known else "unknown"
        raise UserError(f"{path}: field {wrong[0]} is {state}; build the engine again")
    if values["backend"] not in BACKENDS:
        raise UserError(f"{path}: backend {values['backend']} is unknown; known are {', '.join(BACKENDS)}")
    if any(Path(name).name != name for name in values["files"]):
        raise UserError(f"{path}: files: a name leads out of the folder; build the engine again")
    try:
        programs = {name: _signature(value) for name, value in values["programs"].items()}
        host = Host(**{**values["host"], "features": tuple(values["host"]["features"])})
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: programs or host are incomplete ({error}); build the engine again") from error
    return Manifest(**{**values, "programs": programs, "host": host})


def _signature(value: dict[str, Any]) -> Signature:
    def specs(key: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in value[key])

    return Signature(inputs=specs("inputs"), outputs=specs("outputs"))
